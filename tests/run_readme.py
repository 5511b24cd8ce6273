"""Installs the package into a fresh environment and runs there what the README shows: `make test-install`.

    python tests/run_readme.py [TORCH]      # TORCH: the build that goes in first, such as torch==2.13.0+cpu

Lines of the README that begin with `janus-dola` run in their order in an empty folder, and blocks of Python after them. The
mini model stands in for weights that would have to be downloaded. What cannot run here is named with the reason. It needs
nothing but Python itself, because the environment that it tests has nothing else.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / ".venv-install"
REPOSITORY = re.compile(r"\bdeepseek-\w+/[\w.-]+")
PROMPTS = [  # with the keys of GenEval's prompts, for `janus-dola geneval`
    {"prompt": "a red circle", "tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]},
    {"prompt": "two blue squares", "tag": "counting", "include": [{"class": "square", "count": 2, "color": "blue"}]},
]
LEFT_OUT = {
    " serve": "does not end",
    " --workers": "needs Ray",
    " --ray-address": "needs a cluster",
    " clip": "downloads weights",
}


def blocks(text: str) -> list[list[str]]:
    """The indented blocks of a page, each as its lines without the indent."""
    result = re.findall(r"(?:^    .*\n(?:\s*\n(?=    ))?)+", text, re.MULTILINE)
    return [textwrap.dedent(block).splitlines() for block in result]


def commands(text: str) -> list[str]:
    """The lines that begin with `janus-dola`, without their comments."""
    lines = [line for block in blocks(text) for line in block if line.startswith("janus-dola ")]
    return [shlex.join(shlex.split(line, comments=True)) for line in lines]


def programs(text: str) -> list[str]:
    """The blocks that are Python."""
    return ["\n".join(block) for block in blocks(text) if any(line.startswith(("from ", "import ")) for line in block)]


def with_mini(shown: str) -> str:
    """A command or a program with the mini model in place of one that must be downloaded."""
    shown = re.sub(r"from_pretrained\(.*?\)", 'from_pretrained("mini")', shown)
    return REPOSITORY.sub("mini", shown)


def reason_to_leave_out(command: str) -> str | None:
    """Why a command cannot run here."""
    return next((why for part, why in LEFT_OUT.items() if part in command), None)


def install(torch: str) -> None:
    """A fresh environment with the package, from the folder that this file is in."""
    venv.create(ENVIRONMENT, clear=True, with_pip=True)
    for expected in (torch, str(ROOT)):
        subprocess.run(
            [ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "--quiet", expected], check=True, cwd=ROOT
        )


def run_all(text: str, folder: Path) -> int:
    """Runs everything in a folder that has files of prompts, and returns how much ran."""
    (folder / "prompts.json").write_text(json.dumps({"prompts": PROMPTS}))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"PATH": f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    ran = 0
    for shown in commands(text):
        why = reason_to_leave_out(shown)
        if why is not None:
            print(f"left out ({why}): {shown}", flush=True)
            continue
        print(f"$ {with_mini(shown)}", flush=True)
        subprocess.run(shlex.split(with_mini(shown)), check=True, cwd=folder, env=environment)
        ran += 1
    for program in programs(text):
        print(textwrap.indent(with_mini(program), ">>> "), flush=True)
        subprocess.run(["python", "-c", with_mini(program)], check=True, cwd=folder, env=environment)
        ran += 1
    return ran


def main() -> None:
    """Installs and runs; ends with an error where a command does."""
    install(*(sys.argv[1:] or ["torch"]))
    with tempfile.TemporaryDirectory() as folder:
        ran = run_all((ROOT / "README.md").read_text(encoding="utf-8"), Path(folder))
    print(f"{ran} commands and programs of the README ran")


if __name__ == "__main__":
    main()
