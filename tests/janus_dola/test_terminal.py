"""What reaches the terminal, and how the command line begins and ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

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


def test_bytes_of_a_prompt_file_never_reach_the_terminal_raw(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'\x1b]0;x\x07{"prompt": 5}\n')
    ended = shell("-m", "janus_dola", "batch", "--prompts", "p.jsonl", cwd=tmp_path)
    assert ended.returncode == 2
    errors = [line for line in ended.stderr.splitlines() if line.startswith(b"janus-dola")]
    assert len(errors) == 1
    assert b"\\x1b]0;x\\x07" in errors[0]
    assert b"\x1b" not in errors[0]


def test_a_terminal_that_lacks_the_characters_stops_nothing(tmp_path):
    prompts = ["一个红色的圆", "a red circle"]
    ended = shell("-m", "janus_dola", "generate", *prompts, cwd=tmp_path, PYTHONIOENCODING="cp1252")
    assert ended.returncode == 0
    assert len(list((tmp_path / "generated_samples").iterdir())) == 2
    assert ended.stdout.splitlines()[0] == b"generated_samples/0_\\u4e00\\u4e2a\\u7ea2\\u8272\\u7684\\u5706_p0.png"


@pytest.mark.parametrize("module", ["janus_dola", "janus_dola.run_batch_prompts"])
def test_ctrl_c_during_imports_is_quiet(module, tmp_path):
    code = (
        "import sys, signal, os, importlib.abc, runpy\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it\n"
        "class Interrupting(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'transformers':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "prompts = ['--prompts', 'p.txt'] if 'batch' in sys.argv[1] else ['generate', 'x']\n"
        f"sys.argv = ['janus-dola', *prompts]; runpy.run_module('{module}', run_name='__main__')\n"
    )
    begin = time.perf_counter()
    ended = shell("-c", code, module, cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")
    assert time.perf_counter() - begin < 30


def test_imports_leave_ctrl_c_as_it_was(monkeypatch):
    from janus_dola.__main__ import import_quietly

    before = signal.getsignal(signal.SIGINT)
    assert import_quietly("json").loads("5") == 5
    assert signal.getsignal(signal.SIGINT) is before


def test_the_package_imports_torch_only_when_asked(tmp_path):
    code = (
        "import sys, janus_dola; assert 'torch' not in sys.modules; janus_dola.JanusDoLa; print('torch' in sys.modules)"
    )
    assert shell("-c", code, cwd=tmp_path).stdout.split() == [b"True"]
    ended = shell("-c", "import janus_dola; janus_dola.nothing", cwd=tmp_path)
    assert b"module 'janus_dola' has no attribute 'nothing'" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "generate"),
        (["--version"], 0, "janus-dola "),
        (["genrate", "x"], 2, "generate"),
        (["generate", "--help"], 0, "N-8, N-6, N-4 and N-2"),
        (["generate", "x", "--alhpa", "1"], 2, "--alpha"),
        (["generate", "x", "--backend", "gpu"], 2, "reference"),
        (["batch"], 2, "--prompts"),
    ],
)
def test_help_and_wrong_options_come_without_torch(tmp_path, arguments, status, said):
    code = (
        "import runpy, sys, atexit\n"
        "atexit.register(lambda: print(sorted({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules))))\n"
        f"sys.argv = ['janus-dola', *{arguments!r}]; runpy.run_module('janus_dola', run_name='__main__')\n"
    )
    ended = shell("-c", code, cwd=tmp_path, COLUMNS="100", NO_COLOR="1")
    out = ended.stdout.decode().splitlines()
    assert ended.returncode == status, ended.stderr
    assert said in " ".join((ended.stdout + ended.stderr).decode().split())
    assert out[-1] == "[]"


def test_versions_are_those_that_are_imported(tmp_path):
    ended = shell("-m", "janus_dola", "--version", cwd=tmp_path)
    import torch
    import transformers

    assert f"(torch {torch.__version__}, transformers {transformers.__version__}, Python 3." in ended.stdout.decode()


def test_other_libraries_say_nothing_on_stderr_and_our_warnings_are_kept(tmp_path):
    code = (
        "import logging, runpy, sys, warnings\n"
        "from janus_dola.cli.startup import import_libraries\n"
        "from janus_dola.cli.terminal import prepare_streams\n"
        "prepare_streams(); import_libraries()\n"
        "import transformers.quantizers.auto  # imports torchao where it is installed\n"
        "logging.getLogger('torchao').warning('Failed to load')\n"
        "warnings.warn('will change', FutureWarning)\n"
        "warnings.warn('ours')\n"
    )
    ended = shell("-c", code, cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"janus-dola: warning: ours\n")
