"""`make gpu-check`: names what is missing here in one line, installs this folder, and runs `bench.gpu.check`."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from bench import ROOT

# By import name: what tests and benchmarks need, and not all machines with a GPU have.
NEEDED = {
    **{name: name for name in ("torch", "triton", "transformers", "safetensors", "tqdm", "filelock", "typer", "pytest")},
    "PIL": "pillow", "pytest_benchmark": "pytest-benchmark", "hypothesis": "hypothesis",
}  # fmt: skip
SETUPTOOLS = 77  # reads our pyproject.toml


def version_of(package: str) -> str | None:
    """Returns an installed package's version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def missing() -> list[str]:
    """Names packages that must be installed first."""
    names = [package for name, package in NEEDED.items() if find_spec(name) is None]
    if version_of("janus-dola") is None and int((version_of("setuptools") or "0").split(".")[0]) < SETUPTOOLS:
        names.append(f"setuptools>={SETUPTOOLS}")
    return names


def main() -> None:
    """Check this machine, then its GPU."""
    if names := missing():
        sys.exit(f"gpu-check: missing packages: {' '.join(names)}")
    if version_of("janus-dola") is None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, "--editable", str(ROOT)], check=True)
    import typer

    from bench.gpu import check

    typer.run(check.main)


if __name__ == "__main__":
    main()
