"""Without network, what the hub's cache holds is drawn with whenever it is enough, and else the file that lacks is named."""

import json
import warnings

import pytest
from huggingface_hub import constants

from janus_dola import JanusDoLa
from janus_dola.models.checkpoint.hub import commit_of, public_name, resolve
from janus_dola.models.checkpoint.load import load

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The mini model in the hub's cache, as the hub's client keeps own/mini."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--own--mini"
    for folder in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "v1").write_text(COMMIT)
    for file in resolve("mini").iterdir():
        (repository / "blobs" / file.name).symlink_to(file)
        (repository / "snapshots" / COMMIT / file.name).symlink_to(f"../../blobs/{file.name}")
    return repository


def listed(repository, *more):
    """Adds the hub's list of the repository's files, as newer clients keep it."""
    trees = pytest.importorskip("huggingface_hub._tree_cache")
    names = [*more, *(path.name for path in (repository / "snapshots" / COMMIT).iterdir())]
    entry = trees.TreeCacheEntry(size=5, blob_id="0" * 40, lfs_sha256=None, lfs_size=None, xet_hash=None)
    trees.write_tree_cache(str(repository), COMMIT, dict.fromkeys(names, entry))


def test_a_whole_checkpoint_of_a_repository_with_other_files_is_drawn_with(kept, tmp_path, recwarn):
    snapshot = kept / "snapshots" / COMMIT
    listed(kept, "pytorch_model.bin", "model.fp16.safetensors", "extra.json")
    for revision in (None, "v1", COMMIT):
        assert resolve("own/mini", revision) == snapshot
    assert not [each for each in recwarn if each.category is UserWarning]
    assert (public_name(snapshot), commit_of(snapshot)) == ("own/mini", COMMIT)
    assert (public_name("own/mini"), commit_of("own/mini"), public_name(tmp_path)) == ("own/mini", None, tmp_path.name)
    pipe = JanusDoLa.from_pretrained(snapshot, "cpu")
    assert (pipe.model_name, pipe.revision) == (
        "own/mini",
        COMMIT,
    )  # which a recipe holds, so that another draws it again
    assert JanusDoLa(pipe.model, pipe.tokenizer).model_name == "own/mini"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer.json: copy"),
        ("model.safetensors", "holds neither model.safetensors nor pytorch_model.bin, nor an index"),
    ],
)
@pytest.mark.parametrize("lost", ["blobs", f"snapshots/{COMMIT}"])
def test_a_file_that_lacks_is_named(kept, name, message, lost):
    listed(kept)
    (kept / lost / name).unlink()  # a link that leads nowhere, or none
    with pytest.raises(FileNotFoundError, match=f"{COMMIT} {message}") as raised:
        load("own/mini", "cpu")
    assert str(raised.value).isprintable()


def test_a_part_of_the_weights_that_lacks_is_named(kept):
    snapshot = kept / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    (snapshot / parts["a"]).write_bytes(b"x")
    listed(kept, parts["b"])
    with pytest.raises(ValueError, match=r"names files that are not there: model-00002-of-00002\.safetensors"):
        load("own/mini", "cpu")


def test_a_template_that_lacks_is_told(kept):
    listed(kept)
    (kept / "snapshots" / COMMIT / "chat_template.jinja").unlink()
    with pytest.warns(UserWarning, match="lacks the chat template of its repository"):
        resolve("own/mini")


def test_a_revision_that_lacks_is_told_with_those_that_are_there(kept):
    (kept / "refs" / "main").unlink()
    (kept / "snapshots" / OTHER).mkdir()
    for revision, named in ((None, "main"), ("v2", "v2"), ("e" * 40, "e" * 40)):
        message = (
            f"model 'own/mini' was not downloaded before in the revision '{named}', but in {COMMIT}, {OTHER}, and the"
        )
        with pytest.raises(FileNotFoundError, match=message):
            resolve("own/mini", revision)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert resolve("own/mini", COMMIT).name == COMMIT
    with pytest.raises(FileNotFoundError, match="is no folder here and was not downloaded before"):
        resolve("own/other")
