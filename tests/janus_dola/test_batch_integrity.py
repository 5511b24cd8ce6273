"""What lies in a folder is taken for what it is: damaged, edited, foreign, or ours."""

import errno
import json
import os
import re
import shutil
import stat

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from janus_dola.batch import Compute, RunSettings, folder, run_batch
from janus_dola.batch.folder import WORK, checked, digest, file_digest
from janus_dola.images.recipe import read_recipe
from tests.bounds import bounded
from tests.janus_dola.batch_helpers import SHAPES, lines, pictures, without_seconds

TWO = RunSettings(parallel_size=2)
FOUR_AT_ONCE = Compute(batch_size=4)
EXAMPLES = 30


def tree(folder):
    """Every file of a folder and what it holds, but for what a run keeps for itself."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and WORK not in path.parts
    }


def black(path):
    """The same metadata around no picture."""
    with Image.open(path) as image:
        exif = image.getexif()
        Image.new("RGB", image.size).save(path, exif=exif, quality=95, subsampling=0)


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def repaint(path):
    with Image.open(path) as image:
        image.putpixel((0, 0), image.getpixel((0, 0)) ^ 1)
        image.save(path)


DAMAGE = {
    "deleted": lambda outdir, line, other: (outdir / line["file"]).unlink(),
    "cut off": lambda outdir, line, other: os.truncate(outdir / line["file"], 200),
    "another image": lambda outdir, line, other: shutil.copy(outdir / other["file"], outdir / line["file"]),
    "black": lambda outdir, line, other: black(outdir / line["file"]),
    "one bit": lambda outdir, line, other: flip(outdir / line["file"], 8 * os.path.getsize(outdir / line["file"]) - 99),
    "map deleted": lambda outdir, line, other: (outdir / line["map"]).unlink(),
    "another map": lambda outdir, line, other: repaint(outdir / line["map"]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_drawn_again_in_its_own_batch(fast, tmp_path, drawn_prompts, damage):
    run_batch(SHAPES[:6], tmp_path, TWO, FOUR_AT_ONCE, pipe=fast)
    before, manifest = pictures(tmp_path), without_seconds(tmp_path)
    DAMAGE[damage](tmp_path, lines(tmp_path)[5], lines(tmp_path)[7])
    drawn_prompts.clear()
    summary = run_batch(SHAPES[:6], tmp_path, TWO, FOUR_AT_ONCE, pipe=fast)
    assert (summary.drawn, summary.kept) == (1, 11)
    assert drawn_prompts == [[SHAPES[2]] * 2 + [SHAPES[3]] * 2]
    assert (pictures(tmp_path), without_seconds(tmp_path)) == (before, manifest)


@pytest.fixture(scope="module")
def finished(fast, tmp_path_factory):
    """The folder of a run, not to be changed."""
    outdir = tmp_path_factory.mktemp("finished")
    run_batch(SHAPES[:3], outdir, TWO, FOUR_AT_ONCE, pipe=fast)
    return outdir


@pytest.fixture
def outdir(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def test_the_manifest_has_the_digests_of_its_files_and_of_itself(finished):
    for line in lines(finished):
        assert line["digest"] == digest((finished / line["file"]).read_bytes()) == file_digest(finished / line["file"])
        assert line["map_digest"] == file_digest(finished / line["map"])
        assert checked(json.dumps(line, indent=2).encode()) is not None  # however it is written
    assert len({line["digest"] for line in lines(finished)}) == 6
    assert file_digest(finished / "no such file") is None


def test_every_flipped_bit_is_noticed(finished, outdir):
    line, chance = lines(finished)[0], np.random.default_rng(3)
    size = (finished / line["file"]).stat().st_size
    for bit in chance.integers(8 * size, size=30):
        shutil.copy(finished / line["file"], outdir / line["file"])
        flip(outdir / line["file"], int(bit))
        assert file_digest(outdir / line["file"]) != line["digest"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5) | st.just("../x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
LINE_KEYS = (
    "file", "map", "image", "index", "k", "id", "prompt", "seed", "settings", "log_prob", "mean_jsd", "max_jsd", "layers",
    "seconds", "digest", "map_digest", "checksum", "extra", "error",
)  # fmt: skip
ODD_LINES = st.sampled_from(
    [b"[" * 50_000, b"9" * 5000, b"\xff\xfe", b"{}", b"null", b'{"image": 999}', b'{"image": 0}']
)


@settings(max_examples=EXAMPLES, database=None, suppress_health_check=list(HealthCheck))
@given(place=st.integers(0, 5), edit=st.tuples(st.sampled_from(LINE_KEYS), JSON) | ODD_LINES)
def test_an_edited_line_is_noticed_and_drawn_again(fast, finished, place, edit, tmp_path_factory):
    """Whatever anyone writes at whatever key."""
    outdir = tmp_path_factory.mktemp("edited") / "out"
    shutil.copytree(finished, outdir)
    manifest = (outdir / "manifest.jsonl").read_bytes().splitlines()
    line = json.loads(manifest[place])
    if isinstance(edit, bytes):
        manifest[place] = edit
    else:
        manifest[place] = json.dumps({**line, edit[0]: edit[1]}).encode()
    (outdir / "manifest.jsonl").write_bytes(b"\n".join(manifest) + b"\n")
    if not isinstance(edit, bytes) and json.dumps(line.get(*edit)) == json.dumps(edit[1]) and edit[0] in line:
        return  # the very value
    with pytest.warns(UserWarning, match=r"1 lines of .*manifest\.jsonl are not as a run wrote them"), bounded():
        summary = run_batch(SHAPES[:3], outdir, TWO, FOUR_AT_ONCE, pipe=fast)
    assert (summary.drawn, summary.kept) == (1, 5)
    assert pictures(outdir) == pictures(finished)
    assert without_seconds(outdir) == without_seconds(finished)
    assert (outdir / "index_data.js").read_bytes() == (finished / "index_data.js").read_bytes()
    shutil.rmtree(outdir)


RUN_KEYS = ("settings", "batch_size", "checksum", "dtype", "parallel_size", "candidate_layers", "model", "seed", "new")


@settings(max_examples=EXAMPLES, database=None, suppress_health_check=list(HealthCheck))
@given(edit=st.tuples(st.sampled_from(RUN_KEYS), JSON) | ODD_LINES, overwrite=st.booleans())
def test_an_edited_run_file_is_refused_in_one_line(fast, finished, edit, overwrite, tmp_path_factory):
    outdir = tmp_path_factory.mktemp("edited") / "out"
    shutil.copytree(finished, outdir)
    content = json.loads((outdir / "run.json").read_bytes())
    if isinstance(edit, bytes):
        (outdir / "run.json").write_bytes(edit)
    else:
        where = content if edit[0] in ("settings", "batch_size", "checksum") else content["settings"]
        if edit[0] in where and json.dumps(where[edit[0]]) == json.dumps(edit[1]):
            return  # the very value
        where[edit[0]] = edit[1]
        (outdir / "run.json").write_text(json.dumps(content))
    before = tree(outdir)
    with pytest.raises(ValueError, match=r"run\.json must be as a run wrote it, but was edited or damaged") as raised:
        run_batch(SHAPES[:3], outdir, TWO, FOUR_AT_ONCE, overwrite=overwrite, pipe=fast)
    assert str(raised.value).isprintable()
    assert tree(outdir) == before
    shutil.rmtree(outdir)


def test_ids_and_other_keys_are_brought_up_to_date(fast, tmp_path):
    with pytest.warns(UserWarning, match="prompts: keys that set nothing are kept in the manifest: 'tag', 'size'"):
        run_batch([{"prompt": "a", "id": 1, "tag": "x", "size": [1]}, "b"], tmp_path, TWO, pipe=fast)
    assert [line["extra"] for line in lines(tmp_path)] == [{"tag": "x", "size": [1]}] * 2 + [{}] * 2
    before = pictures(tmp_path)
    summary = run_batch([{"prompt": "a", "id": "one"}, "b"], tmp_path, TWO, pipe=fast)
    assert (summary.drawn, summary.kept) == (0, 4)
    assert [line["id"] for line in lines(tmp_path)] == ["one", "one", None, None]
    assert [line["extra"] for line in lines(tmp_path)] == [{}] * 4
    assert pictures(tmp_path) == before


def refused(outdir, message, **more):
    """Nothing in the folder changes, nothing is made there."""
    before = tree(outdir)
    with pytest.raises(ValueError, match=message) as raised:
        run_batch(["a"], outdir, **more)
    assert "\n" not in str(raised.value)
    assert tree(outdir) == before


def test_a_folder_that_is_not_of_a_run_is_refused(fast, tmp_path):
    (tmp_path / "thesis.pdf").write_bytes(b"my life's work")
    refused(tmp_path, "must be empty or begun by an earlier run, but holds 'thesis.pdf' and no run.json", pipe=fast)
    (tmp_path / "manifest.jsonl").write_text('{"image": 0, "file": "thesis.pdf"}\n')
    refused(tmp_path, "must be empty or begun by an earlier run", pipe=fast)
    assert not (tmp_path / WORK).exists()
    refused(tmp_path, r"holds a file manifest\.jsonl that is not as a run wrote it", overwrite=True, pipe=fast)


def test_without_its_run_file_a_folder_is_refused_and_overwritten_on_demand(fast, outdir):
    (outdir / "run.json").unlink()
    (outdir / "mine.jpg").write_bytes(b"not of the run")
    other = RunSettings(parallel_size=1, seed=70)
    refused(outdir, "must be empty or begun by an earlier run", settings=other, pipe=fast)
    run_batch(["a"], outdir, other, overwrite=True, pipe=fast)
    assert set(pictures(outdir)) == {"0_a_p0.jpg", "maps/0_a_p0.png", "mine.jpg"}
    assert len(lines(outdir)) == 1


@pytest.mark.parametrize("lost", [True, False])
def test_overwrite_deletes_only_what_is_as_a_run_wrote_it(fast, outdir, lost):
    """A retouched image stays; and is never written over."""
    first, second = lines(outdir)[:2]
    (outdir / first["file"]).write_bytes(b"retouched")
    if lost:
        (outdir / "run.json").unlink()
    run_batch(["a"], outdir, RunSettings(parallel_size=1), overwrite=True, pipe=fast)
    assert (outdir / first["file"]).read_bytes() == b"retouched"
    assert not (outdir / second["file"]).exists()
    before = tree(outdir)
    with pytest.raises(
        ValueError, match=f"holds a file {first['file']} that is not as an earlier run wrote it, and this"
    ):
        run_batch(SHAPES[:3], outdir, TWO, overwrite=True, pipe=fast)
    assert tree(outdir) == before


@pytest.mark.parametrize("name", ["index.html", "index_data.js"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_foreign_page_is_never_written_over(fast, outdir, tmp_path, name, overwrite):
    (outdir / name).write_text("<title>my home page</title>")
    refused(outdir, f"holds a file {name} that is not as a run wrote it. Move it away", overwrite=overwrite, pipe=fast)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / name).write_text("<title>my home page</title>")
    message = f"holds a file {name}" if overwrite else "must be empty or begun by"
    refused(tmp_path / "new", message, overwrite=overwrite, pipe=fast)


def test_a_run_that_never_began_leaves_a_folder_that_the_next_one_takes(fast, tmp_path):
    with pytest.raises(FileNotFoundError):
        run_batch(["a"], tmp_path, RunSettings("no/such/model"))
    assert run_batch(["a"], tmp_path, TWO, pipe=fast).drawn == 2


def test_prompts_none_of_which_can_be_drawn(fast, tmp_path):
    with pytest.raises(ValueError, match="must hold a prompt that can be drawn, but prompt 0: prompt must be a string"):
        run_batch([{"prompt": 3}], tmp_path / "out", skip_bad=True, pipe=fast)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["file and folder", "folder", "lock"])
@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_without_fsync_or_locks_gets_one_warning(fast, tmp_path, monkeypatch, what, refusal):
    folder.warn_once.cache_clear()
    real = os.fsync

    def fsync(handle):
        if what == "file and folder" or (what == "folder" and stat.S_ISDIR(os.fstat(handle).st_mode)):
            raise OSError(refusal, os.strerror(refusal))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    if what == "lock":

        def acquire(self):
            raise OSError(refusal, os.strerror(refusal))

        monkeypatch.setattr(folder.FileLock, "acquire", acquire)
    message = "has no locks" if what == "lock" else "cannot make files last"
    with pytest.warns(UserWarning, match=f"{message} \\({re.escape(os.strerror(refusal))}\\)") as warned:
        assert run_batch(SHAPES[:3], tmp_path, TWO, FOUR_AT_ONCE, pipe=fast).drawn == 6
    assert len(warned) == 1
    folder.warn_once.cache_clear()


def test_a_disk_that_fails_is_not_taken_for_one_without_fsync(fast, tmp_path, monkeypatch):
    def fsync(handle):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="cannot write to .*: Input/output error"):
        run_batch(SHAPES[:3], tmp_path, TWO, pipe=fast)


@pytest.mark.parametrize("when", ["grown", "replaced", "gone"])
def test_prompts_that_change_during_a_run(fast, tmp_path, monkeypatch, when):
    path, generate = tmp_path / "p.txt", type(fast).generate
    path.write_text("a\nb\n")

    def meanwhile(self, *arguments, **settings):
        if when == "grown":
            path.write_text("a\nb\nc\n")
        elif when == "replaced":
            path.write_text("c\nd\n")
        else:
            path.unlink()
        return generate(self, *arguments, **settings)

    monkeypatch.setattr(type(fast), "generate", meanwhile)
    with pytest.warns(UserWarning, match="changed during the run, which drew what it held"):
        summary = run_batch(path, tmp_path / "out", RunSettings(parallel_size=1), pipe=fast)
    monkeypatch.undo()
    assert (summary.drawn, summary.prompts) == (2, 2)
    assert [line["prompt"] for line in lines(tmp_path / "out")] == ["a", "b"]
    assert read_recipe(tmp_path / "out" / "1_b_p0.jpg").prompt == "b"
    if when == "grown":
        assert run_batch(path, tmp_path / "out", RunSettings(parallel_size=1), pipe=fast).drawn == 1
