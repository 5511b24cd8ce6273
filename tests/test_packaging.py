"""A user installs a wheel with everything in it, which shadows no import name of others."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command, cwd, **environment):
    ended = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Builds wheel and source distribution from a copy of what git tracks or would."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in files:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to((ROOT / name).readlink())
        elif (ROOT / name).exists():
            target.write_bytes((ROOT / name).read_bytes())
    run("-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def test_wheel_holds_both_packages_and_no_kernels_of_its_own(built):
    names = zipfile.ZipFile(built[0]).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"janus_dola"}
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "janus_dola").rglob("*") if path.is_file()}
    expected = {name for name in ours if "__pycache__" not in name}
    assert {"janus_dola/kernels/gpu/launch_table.json", "janus_dola/mini/checkpoint/model.safetensors"} < expected
    assert expected <= set(names)
    with tarfile.open(built[1]) as source:
        contents = {name.split("/", 2)[1] for name in source.getnames() if "/" in name}
        assert any(name.endswith("kernels/reference.py") for name in source.getnames())
    assert {"janus_dola", "LICENSE", "README.md"} <= contents
    assert "tests" not in contents
    assert all(archive.stat().st_size <= 14e6 for archive in built)


def test_wheel_draws_outside_the_repository(built, tmp_path):
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", built[0], cwd=tmp_path)
    where = run("-c", "import janus_dola; print(janus_dola.__file__)", cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert where.startswith(str(tmp_path / "site"))
    out = run("-m", "janus_dola.cli.app", "generate", "a red circle", cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert out == "generated_samples/0_a_red_circle_p0.png\n"
    assert (tmp_path / out.strip()).stat().st_size > 500


def test_the_container_installs_what_is_here_and_serves():
    lines = (ROOT / "Containerfile").read_text(encoding="utf-8").splitlines()
    for line in (line for line in lines if line.startswith("COPY ")):
        assert all((ROOT / name).exists() for name in line.split()[1:-1]), line
    entry = next(json.loads(line.removeprefix("ENTRYPOINT ")) for line in lines if line.startswith("ENTRYPOINT "))
    assert " serve [OPTIONS]" in run("-m", entry[0].replace("-", "_"), *entry[1:], "--help", cwd=ROOT)


def test_the_version_to_cite_is_the_one_installed():
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited.group(1) in (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("version = ")[1].split("\n")[0]


def test_nothing_needs_the_link_to_the_kernels(tmp_path):
    """A clone on Windows may have a file in its place. What is imported lies in the package."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "janus_dola", clone / "janus_dola", ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "kernels").write_text("janus_dola/kernels")
    code = "from janus_dola.kernels import reference; print(reference.__file__)"
    actual = run("-c", code, cwd=tmp_path, PYTHONPATH=str(clone)).strip()
    assert Path(actual) == clone / "janus_dola" / "kernels" / "reference.py"
    assert (ROOT / "kernels").samefile(ROOT / "janus_dola" / "kernels")


def test_hugging_faces_kernels_is_not_shadowed_from_the_repositorys_root(tmp_path):
    theirs = tmp_path / "kernels"
    theirs.mkdir()
    (theirs / "__init__.py").write_text("origin = 'Hugging Face'\n")
    # The root comes first on the path, as it does for `python -c` there; a regular package wins all the same.
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]"
    code = f"{paths}; import kernels; print(kernels.origin)"
    assert run("-c", code, cwd=ROOT) == "Hugging Face\n"


def test_kernels_know_nothing_of_models():
    for file in (ROOT / "janus_dola" / "kernels").rglob("*.py"):
        imports = re.findall(r"^\s*(?:from|import) (\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert not [
            name for name in imports if name.startswith(("transformers", "janus_dola")) and "kernels" not in name
        ], file
