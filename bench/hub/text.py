"""DoLa and SLED for text as a folder that transformers' `generate(custom_generate=...)` loads, from the Hub or from a disk.

`dola/` beside this file is the Hub's own: card, requirements, `generate`. The modules are the package's.
"""

from pathlib import Path

from bench.hub.flatten import flat_modules, write, write_folder

TEMPLATE = Path(__file__).with_name("dola")


def write_text(folder: Path, owner: str) -> None:
    """Writes the repository into a new folder; FileExistsError: it is not new."""
    write_folder(TEMPLATE, folder, owner)
    code = folder / "custom_generate"
    modules = flat_modules("janus_dola.text.decode")
    for name, text in modules.items():
        write(code / f"{name}.py", text)
    # transformers 4 copies the files that generate.py names, and no others.
    names = "".join(f"from .{name} import __doc__ as _  # noqa: F401\n" for name in sorted(modules))
    generate = (code / "generate.py").read_text(encoding="utf-8")
    write(code / "generate.py", f"{generate}\n\n# transformers copies what is named here.\n{names}")
