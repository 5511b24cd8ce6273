"""A name stands for the old file or the whole new one, whatever the disk refuses or ends the process."""

import errno
import os
import resource
import stat
import threading
from contextlib import contextmanager

import pytest

from janus_dola.images import whole_files
from janus_dola.images.files import write_new
from janus_dola.images.whole_files import write_whole


@contextmanager
def files_of_at_most(size):
    """As `ulimit -f` does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("failure", ["large", "ended", "sync", "replaced"])
def test_what_cannot_be_written_leaves_everything_as_it_was(tmp_path, monkeypatch, overwrite, failure):
    old, new, work = tmp_path / "old.png", tmp_path / "new.png", tmp_path / "work"
    work.mkdir()
    old.write_bytes(b"old")
    path = old if overwrite else new

    def content():
        yield b"a" * 4096
        if failure == "ended":
            raise KeyboardInterrupt  # as SIGTERM does
        yield b"b" * 4096

    def refuse(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    if failure in ("sync", "replaced"):
        name = {"sync": "fsync", "replaced": "replace" if overwrite else "link"}[failure]
        monkeypatch.setattr(whole_files.os, name, refuse)
    expected = KeyboardInterrupt if failure == "ended" else OSError
    for partial in (None, work):
        with files_of_at_most(4096 if failure == "large" else 2**20), pytest.raises(expected) as raised:
            write_whole(path, content(), overwrite, partial)
        assert {path.name for path in tmp_path.rglob("*")} == {"old.png", "work"}
        assert old.read_bytes() == b"old"
        if failure != "ended":
            reason = errno.EFBIG if failure == "large" else errno.EIO
            assert str(raised.value) == f"[Errno {reason}] {os.strerror(reason)}: '{path}'"


@pytest.mark.parametrize("has_links", [True, False])
def test_what_comes_in_the_last_moment_is_not_replaced(tmp_path, monkeypatch, has_links):
    path = tmp_path / "a.png"
    if not has_links:

        def refuse(*arguments):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(whole_files.os, "link", refuse)

    def content():
        yield b"ours"
        path.write_bytes(b"another program's")

    with pytest.raises(FileExistsError, match="a.png"):
        write_whole(path, content(), overwrite=False)
    assert tree(tmp_path) == {"a.png": b"another program's"}
    path.unlink()
    write_whole(path, b"ours", overwrite=False)
    assert tree(tmp_path) == {"a.png": b"ours"}


def test_a_new_file_has_the_mode_of_any_and_a_replaced_one_keeps_its_own(tmp_path):
    before = os.umask(0o027)
    try:
        path = tmp_path / f"{'n' * 251}.png"  # as long as a name may be
        write_new(path, b"new", overwrite=False)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write_new(path, b"newer", overwrite=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert tree(tmp_path) == {path.name: b"newer"}


def test_a_protected_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(PermissionError, match="a.png"):
        write_new(path, b"new", overwrite=True)
    assert tree(tmp_path) == {"a.png": b"old"}


def test_a_link_is_replaced_and_a_pipe_is_written_to(tmp_path):
    other, link, pipe, read = tmp_path / "other", tmp_path / "link", tmp_path / "pipe", []
    other.write_bytes(b"precious")
    link.symlink_to(other)
    write_whole(link, b"new")
    assert (other.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"precious", b"new", False)
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, b"through")
    reader.join()
    assert read == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_pictures_of_a_call_are_kept_or_whole_and_the_error_says_which_are_written(mini, tmp_path, monkeypatch):
    out, folder = mini(["a red circle", "a blue square"], 1, seed=3), tmp_path / "saved"
    first, second = out.save(folder)
    old = second.read_bytes()
    first.unlink()
    real = whole_files.os.replace

    def refuse(hidden, path):
        if path == second:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(hidden, path)

    monkeypatch.setattr(whole_files.os, "replace", refuse)
    with pytest.raises(OSError, match="No space left") as raised:
        out.save(folder, overwrite=True)
    assert str(raised.value) == (
        f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)} (written before it: {first}): '{second}'"
    )
    assert (set(tree(folder)), second.read_bytes()) == ({first.name, second.name}, old)


def test_the_same_command_after_room_is_made(call, tmp_path):
    command, file = ["generate", "a red circle", "--outdir", tmp_path], tmp_path / "0_a_red_circle_p0.png"
    refused = f"janus-dola: error: [Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}: '{file}'"
    with files_of_at_most(1024):
        status, printed, err = call(*command)
    assert (status, printed, err.splitlines()[-1]) == (2, "", refused)
    assert tree(tmp_path) == {}
    assert call(*command)[0] == 0
    before = tree(tmp_path)
    with files_of_at_most(1024):
        status, printed, err = call(*command, "--overwrite")
    assert (status, printed, err.splitlines()[-1]) == (2, "", refused)
    assert tree(tmp_path) == before
