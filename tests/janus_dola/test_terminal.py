"""What reaches the terminal, and how the command line begins and ends."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
import transformers

import janus_dola
from janus_dola.cli.startup import end_by_sigterm, import_libraries, import_quietly
from janus_dola.cli.terminal import printable


def shell(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\x1b]0;x\x07red\x1b[31m", "\\x1b]0;x\\x07red\\x1b[31m"),
        ("two\nlines\r\n\tand a tab", "two lines and a tab"),
        ("赤い円 é", "赤い円 é"),
        ("\u202egnp.exe\x9b2J\x7f\udcff", "\\u202egnp.exe\\x9b2J\\x7f\\udcff"),
    ],
)
def test_control_characters_are_escaped(text, line):
    assert printable(text) == line


def test_bytes_of_a_prompt_file_never_reach_the_terminal_raw(call, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_bytes(b'\x1b]0;x\x07{"prompt": 5}\n')
    status, _, err = call("batch", "--prompts", prompts, "--outdir", tmp_path / "out")
    assert status == 2
    assert err.startswith("janus-dola: error: ")
    assert err.count("\n") == 1
    assert "\\x1b]0;x\\x07" in err
    assert "\x1b" not in err


def test_a_terminal_that_lacks_the_characters_stops_nothing(call, tmp_path, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    status, _, _ = call("generate", "一个红色的圆", "a red circle", "--outdir", tmp_path)
    sys.stdout.flush()
    assert status == 0
    assert len(list(tmp_path.iterdir())) == 2
    first = written.getvalue().splitlines()[0]
    assert first == f"{tmp_path}/0_".encode() + b"\\u4e00\\u4e2a\\u7ea2\\u8272\\u7684\\u5706_p0.png"


@pytest.mark.parametrize(
    ("module", "imported", "number", "status"),
    [
        ("janus_dola", "torch", "SIGINT", 130),
        ("janus_dola.run_batch_prompts", "transformers", "SIGINT", 130),
        ("janus_dola", "typer", "SIGTERM", 143),
    ],
)
def test_what_ends_a_process_during_imports_is_quiet(module, imported, number, status, tmp_path):
    code = (
        "import sys, signal, os, importlib.abc, runpy\n"
        f"signal.signal(signal.SIGINT, signal.{'SIG_IGN' if number == 'SIGTERM' else 'default_int_handler'})\n"
        "class Interrupting(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == '{imported}':\n"
        "            try:\n"
        f"                os.kill(os.getpid(), signal.{number})\n"
        "            except BaseException: pass  # as some modules do\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "prompts = ['--prompts', 'p.txt'] if 'batch' in sys.argv[1] else ['generate', 'x']\n"
        f"sys.argv = ['janus-dola', *prompts]; runpy.run_module('{module}', run_name='__main__')\n"
    )
    begin = time.perf_counter()
    ended = shell("-c", code, module, cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, b"", b"")
    assert time.perf_counter() - begin < 30


def test_sigterm_does_what_ctrl_c_does_at_that_moment():
    before, heard = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)], []
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_by_sigterm()
        signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
        os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with pytest.raises(SystemExit, match="143"):
            os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_by_sigterm()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    assert heard == [signal.SIGTERM]


def test_streams_that_are_closed_lead_nowhere(tmp_path):
    code = (
        "import os, sys\n"
        "from janus_dola.cli.terminal import complain, prepare_streams\n"
        "prepare_streams()\n"
        "with open('mine', 'w') as file:\n"
        "    print('lost'); complain('lost'); os.write(1, b'lost'); os.write(2, b'lost')\n"
        "    file.write(f'{file.fileno() > 2} {sys.stdin.buffer.read()} {os.get_inheritable(1)}')\n"
    )
    subprocess.run(["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "mine").read_text() == "True b'' True"


def test_a_name_that_the_locale_lacks_is_told_with_the_locale(tmp_path):
    code = (
        "from janus_dola.images.files import file_name\n"
        "print(file_name({'index': 0, 'words': 'a red circle', 'k': 0}, 'png'), flush=True)\n"
        "file_name({'index': 0, 'words': 'großer Kreis', 'k': 0}, 'png')\n"
    )
    (tmp_path / "names.py").write_text(code, encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = shell("names.py", cwd=tmp_path, **locale)
    assert ended.stdout == b"0_a_red_circle_p0.png\n"
    assert ended.stderr.splitlines()[-1] == (
        b"ValueError: the file name '0_gro\\xdfer_Kreis_p0.png' cannot be written; file names here are ascii, by the "
        b"locale: set PYTHONUTF8=1"
    )


def test_imports_leave_ctrl_c_as_it_was(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    assert import_quietly("json").loads("5") == 5
    assert signal.getsignal(signal.SIGINT) is before


def test_the_package_imports_torch_only_when_asked(tmp_path):
    code = "import sys, janus_dola; print('torch' in sys.modules); janus_dola.DoLaConfig; print('torch' in sys.modules)"
    assert shell("-c", code, cwd=tmp_path).stdout.split() == [b"False", b"False"]
    assert janus_dola.JanusDoLa.__module__ == "janus_dola.pipeline"
    with pytest.raises(AttributeError, match="module 'janus_dola' has no attribute 'nothing'"):
        janus_dola.nothing  # noqa: B018


COMMANDS = [  # with their status, and a part of what they print
    (["--help"], 0, "generate"),
    (["genrate", "x"], 2, "generate"),
    *([[command, "--help"], 0, "Usage"] for command in ("again", "serve", "answer", "info", "demo", "clip", "profile")),
    (["generate", "--help"], 0, "N-8, N-6, N-4 and N-2"),
    (["generate", "x", "--alhpa", "1"], 2, "--alpha"),
    (["generate", "x", "--backend", "gpu"], 2, "reference"),
    (["batch"], 2, "--prompts"),
]


def test_help_and_wrong_options_come_without_torch(tmp_path):
    """In one process, one after the other: the first that imports a large library shows it to all that follow."""
    code = (
        "import contextlib, io, json, sys\n"
        "from janus_dola.__main__ import main\n"
        f"for arguments in {[arguments for arguments, _, _ in COMMANDS]!r}:\n"
        "    sys.argv = ['janus-dola', *arguments]\n"
        "    printed = io.StringIO()\n"
        "    try:\n"
        "        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):\n"
        "            main()\n"
        "    except SystemExit as ended:\n"
        "        status = ended.code\n"
        "    large = sorted({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules))\n"
        "    print(json.dumps([status, printed.getvalue(), large]))\n"
    )
    ended = shell("-c", code, cwd=tmp_path, COLUMNS="100", NO_COLOR="1")
    lines = ended.stdout.decode().splitlines()
    assert len(lines) == len(COMMANDS), ended.stderr
    for line, (arguments, status, said) in zip(lines, COMMANDS, strict=True):
        code, printed, large = json.loads(line)
        assert (code or 0, large) == (status, []), arguments
        assert said in " ".join(printed.replace("│", " ").split())


def test_versions_are_those_that_are_imported(call):
    status, out, _ = call("--version")
    assert status == 0
    assert f"(torch {torch.__version__}, transformers {transformers.__version__}, Python 3." in out


def test_other_libraries_say_nothing_on_stderr_and_our_warnings_are_kept(caplog):
    """What importing torchao prints is seen in a real shell, see test_cli.py."""
    threads, logger = torch.get_num_threads(), logging.getLogger("torchao")
    logger.setLevel(logging.NOTSET)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        import_libraries()
        logger.warning("Failed to load")
        warnings.warn("will change", FutureWarning, stacklevel=1)
        warnings.warn("ours", stacklevel=1)
    torch.set_num_threads(threads)
    assert [str(each.message) for each in caught] == ["ours"]
    assert caplog.text == ""
