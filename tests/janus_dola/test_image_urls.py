"""Images that a server keeps for an hour."""

import threading

import pytest

from janus_dola.serve.image_urls import ImageUrls


def test_images_are_dropped_when_their_time_is_over():
    urls, gone = ImageUrls(), ImageUrls(seconds=-1)
    assert urls.answer(urls.add(b"x", "png")).body == b"x"
    assert gone.answer(gone.add(b"x", "png")) is None
    assert not gone._kept


@pytest.mark.parametrize(("ending", "kind"), [("png", "image/png"), ("jpg", "image/jpeg"), ("webp", "image/webp")])
def test_an_image_has_the_type_it_was_made_with_and_no_other(ending, kind):
    urls = ImageUrls()
    headers = urls.answer(urls.add(b"<script>", ending)).headers
    assert (headers["content-type"], headers["x-content-type-options"]) == (kind, "nosniff")


def test_the_oldest_images_make_room():
    urls = ImageUrls(most_bytes=10)
    names = [urls.add(b"1234", "png") for _ in range(5)]
    assert [urls.answer(name) is not None for name in names] == [False, False, False, True, True]


def test_many_threads_may_add_and_read_while_images_go():
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
    assert sum(len(content) for _, content in urls._kept.values()) == urls._bytes <= 4000
