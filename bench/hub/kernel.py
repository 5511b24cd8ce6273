"""The head stage as a kernel of the Hugging Face Hub, which `kernels.get_kernel` loads.

`early_exit/` beside this file is the Hub's own: description, card, tests, benchmark. The modules are the package's.

    build.toml, flake.nix, torch-ext/early_exit/     what Hugging Face's kernel-builder builds from
    build/torch-cuda/, torch-rocm/, torch-cpu/       what it would build: modules, `_ops.py`, and metadata with digests
"""

import base64
import hashlib
import json
import re
from pathlib import Path

from bench.hub.flatten import ROOT, flat_modules, write, write_folder

TEMPLATE = Path(__file__).with_name("early_exit")
NAME, VERSION = "early-exit", 0  # as in build.toml; version 0 may change without notice
BACKENDS = ("cuda", "rocm", "cpu")
_OPERATOR = re.compile(r'"janus_dola::(\w+)"')
_OPS = '''"""The namespace of this build's operators: other builds may be loaded beside it."""


def add_op_namespace_prefix(name: str) -> str:
    """Returns the full name of an operator."""
    return f"NAMESPACE::{name}"
'''


def write_kernel(folder: Path, owner: str) -> None:
    """Writes the tree into a new folder; FileExistsError: it is not new."""
    write_folder(TEMPLATE, folder, owner)
    source = folder / "torch-ext" / "early_exit"
    for name, text in flat_modules("janus_dola.kernels.head").items():
        write(source / f"{name}.py", _with_namespace(text))
    table = ROOT / "janus_dola" / "kernels" / "gpu" / "launch_table.json"
    write(source / table.name, table.read_text(encoding="utf-8"))
    files = {path.name: path.read_text(encoding="utf-8") for path in sorted(source.iterdir())}
    build = hashlib.sha256(repr(files).encode()).hexdigest()[:7]
    for backend in BACKENDS:
        identity = f"_early_exit_{backend}_{build}"
        variant = {**files, "_ops.py": _OPS.replace("NAMESPACE", identity)}
        for name, text in variant.items():
            write(folder / "build" / f"torch-{backend}" / name, text)
        metadata = {
            "name": NAME,
            "id": identity,
            "version": VERSION,
            "license": "apache-2.0",
            "python-depends": [],
            "backend": {"type": backend},
            "digest": {"algorithm": "sha256", "files": {name: _digest(text) for name, text in sorted(variant.items())}},
        }
        write(folder / "build" / f"torch-{backend}" / "metadata.json", json.dumps(metadata, indent=2) + "\n")


def _with_namespace(source: str) -> str:
    """Registers a module's operators under the build's own namespace."""
    if not _OPERATOR.search(source):
        return source
    source = _OPERATOR.sub(r'add_op_namespace_prefix("\1")', source)
    return source.replace("\nfrom .", "\nfrom ._ops import add_op_namespace_prefix\nfrom .", 1)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
