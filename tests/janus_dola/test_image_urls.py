"""Files that a server keeps for an hour."""

import shutil
import threading
from pathlib import Path

import pytest

from janus_dola.serve.image_urls import ImageUrls


@pytest.fixture
def urls():
    made = ImageUrls()
    yield made
    made.close()


def files(urls):
    return sorted(path.name for path in Path(urls._folder.name).iterdir())


def test_files_are_removed_when_their_time_is_over(urls):
    assert urls.answer(urls.add(b"x", "png")).body == b"x"
    gone = ImageUrls(seconds=-1)
    name = gone.add(b"x", "png")
    assert files(gone) == [name]
    assert gone.answer(name) is None
    assert files(gone) == []
    gone.close()


@pytest.mark.parametrize(("ending", "kind"), [("png", "image/png"), ("jpg", "image/jpeg"), ("webp", "image/webp")])
def test_a_file_has_the_type_it_was_made_with_and_no_other(urls, ending, kind):
    headers = urls.answer(urls.add(b"<script>", ending)).headers
    assert (headers["content-type"], headers["x-content-type-options"]) == (kind, "nosniff")


def test_the_oldest_files_make_room():
    urls = ImageUrls(most_bytes=10)
    names = [urls.add(b"1234", "png") for _ in range(5)]
    assert files(urls) == sorted(names[-2:])
    assert [urls.answer(name) is not None for name in names] == [False, False, False, True, True]
    large = urls.add(b"x" * 11, "png")
    assert files(urls) == [large]
    urls.close()


def test_a_folder_that_was_cleaned_away_is_made_anew(urls):
    old = urls.add(b"old", "png")
    shutil.rmtree(urls._folder.name)
    assert urls.answer(old) is None
    new = urls.add(b"new", "png")
    assert urls.answer(new).body == b"new"
    (Path(urls._folder.name) / new).unlink()
    assert urls.answer(new) is None
    assert urls.answer(urls.add(b"newer", "png")).body == b"newer"


def test_a_write_that_fails_leaves_nothing(urls, monkeypatch):
    def half(self, content):
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="No space left"):
            urls.add(b"xyz", "png")
    assert files(urls) == []
    assert urls.answer(urls.add(b"xyz", "png")).body == b"xyz"


def test_many_threads_may_add_and_read_while_files_go():
    urls, faults = ImageUrls(seconds=0.01, most_bytes=4000), []

    def work():
        try:
            for _ in range(300):
                name = urls.add(b"x" * 10, "png")
                urls.answer(name)
                urls.answer("x")
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert len(files(urls)) == len(urls._kept)
    assert sum(size for _, size in urls._kept.values()) == urls._bytes <= 4000
    urls.close()
