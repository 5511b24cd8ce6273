"""Copies modules of the package, and all that they import of it, into one folder where they import each other relatively.

The Hub's loaders take code from a folder and cannot install a package. No two modules of ours share a name
(tests/house.py), so a module keeps the last part of its own.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_IMPORT = re.compile(r"^( *)from (janus_dola[\w.]*) import (.*)$", re.MULTILINE)
_MENTION = re.compile(r"\bjanus_dola\.(?:\w+\.)*(?=\w)")


def flat_modules(*names: str) -> dict[str, str]:
    """Returns the sources of modules such as "janus_dola.kernels.head" and of all they import, by the last part of a name.

    Raises:
        ValueError: something other than a module is imported from a package, or two modules have the same last part.
    """
    sources: dict[str, str] = {}
    origins: dict[str, str] = {}
    to_read = list(names)
    while to_read:
        name = to_read.pop()
        short = name.rpartition(".")[2]
        if origins.setdefault(short, name) != name:
            raise ValueError(f"modules must have different last parts, got {origins[short]} and {name}")
        if short in sources:
            continue
        if not _file(name).is_file():
            raise ValueError(f"what is imported must be a module, or come from one, got {name}")
        source = _file(name).read_text(encoding="utf-8")
        for _, module, imported in _IMPORT.findall(source):
            to_read += [module] if _file(module).is_file() else [f"{module}.{each}" for each in imported.split(", ")]
        sources[short] = _MENTION.sub("", _IMPORT.sub(_relative, source))
    return sources


def _file(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def _relative(match: re.Match[str]) -> str:
    indent, module, imported = match.groups()
    short = module.rpartition(".")[2] if _file(module).is_file() else ""
    return f"{indent}from .{short} import {imported}"


def write_folder(template: Path, folder: Path, owner: str) -> None:
    """Copies a folder of text files to a new place, with the owner's name for OWNER; FileExistsError: it is not new."""
    folder.mkdir(parents=True)
    for path in sorted(template.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            write(folder / path.relative_to(template), path.read_text(encoding="utf-8").replace("OWNER", owner))


def write(path: Path, text: str) -> None:
    """Writes a file, and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
