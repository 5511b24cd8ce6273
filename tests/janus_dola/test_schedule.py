"""Images of many prompts in full batches."""

import pytest
import torch

from janus_dola import NonFiniteError
from janus_dola.engine.backbone import Backbone
from janus_dola.engine.schedule import Job, batches, bucket_of, images_that_fit

PROMPTS = ["a large red circle on white", "a small blue square on grey", "a green cross"]


def jobs(lengths):
    return [Job(i, i, 0, [0] * length, i) for i, length in enumerate(lengths)]


def sizes(lengths, limit):
    return [[len(job.token_ids) for job in batch] for batch in batches(jobs(lengths), limit)]


def test_batches_are_full_and_in_order():
    assert sizes([5] * 7, lambda longest: 3) == [[5, 5, 5], [5, 5, 5], [5]]
    assert sizes([], lambda longest: 3) == []


def test_a_long_prompt_makes_its_batch_smaller():
    assert sizes([5, 5, 50, 5, 5], lambda longest: 2 if longest > 10 else 4) == [[5, 5], [50, 5], [5]]
    assert sizes([50, 50], lambda longest: 1) == [[50], [50]]


def test_an_error_comes_after_the_images_before_it(mini):
    drawn = []
    with pytest.raises(ValueError, match="prompts must be strings, got 7"):
        drawn.extend(found.prompt for found in mini.stream([*PROMPTS, 7, "a red circle"], max_images=2))
    assert drawn == [0, 1, 2]


def test_a_stream_is_what_generate_draws(mini):
    expected = mini.generate(PROMPTS, parallel_size=2, seed=5)
    for size in (1, 4, None):
        drawn = list(mini.stream(iter(PROMPTS), parallel_size=2, seed=5, max_images=size))
        assert [(found.prompt, found.k) for found in drawn] == [(i, k) for i in range(3) for k in range(2)]
        assert torch.equal(torch.stack([found.tokens for found in drawn]), expected.tokens.flatten(0, 1))
        assert [found.seed for found in drawn] == expected.seeds.flatten().tolist()
        assert {found.image.size for found in drawn} == {(64, 64)}


def test_a_stream_reads_prompts_as_it_needs_them(mini):
    read = []

    def prompts():
        for prompt in PROMPTS * 100:
            read.append(prompt)
            yield prompt

    stream = mini.stream(prompts(), max_images=2)
    next(stream)
    assert len(read) == 3  # the batch and the one that did not fit


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_max_images_out_of_range(mini, size):
    with pytest.raises(ValueError, match=f"max_images must be None or an int >= 1, got {size}"):
        mini.stream(PROMPTS, max_images=size)


@pytest.mark.parametrize(("room", "images"), [(0.5, 1), (3.5, 2), (15.9, 8), (16.1, 16), (10**6, 64)])
def test_free_memory_decides_on_a_gpu(mini, monkeypatch, room, images):
    """An image needs 2 rows x 128 positions (36 + 64, rounded up) x 8 blocks x 192 numbers x 2 x 4 bytes."""
    parts = type("Parts", (), {**vars(mini.parts), "num_layers": 8, "dtype": torch.float32})
    parts.device = torch.device("cuda")
    free = int(room / 0.7 * 2 * 128 * 8 * 192 * 2 * 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - 100, 10**12))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 950)
    assert images_that_fit(parts, 36, kept_bytes=50) == images


def test_graphs_are_captured_for_few_sizes():
    assert [bucket_of(images) for images in (1, 2, 3, 4, 5, 8, 9, 16, 17, 64, 65)] == [
        1,
        2,
        4,
        4,
        8,
        8,
        16,
        16,
        24,
        64,
        72,
    ]


def test_an_image_that_is_not_finite_is_named_by_its_place_among_all(mini, monkeypatch):
    step, calls = Backbone.step, []

    def poisoned(backbone, embeddings, visible):
        calls.append(1)
        if len(calls) == 63 + 10:  # of the second batch
            embeddings[0] = float("nan")
        step(backbone, embeddings, visible)

    monkeypatch.setattr(Backbone, "step", poisoned)
    stream = mini.stream(PROMPTS, max_images=2)
    assert [next(stream).prompt, next(stream).prompt] == [0, 1]
    with pytest.raises(NonFiniteError, match=r"image\(s\) \[2\], counted over all prompts") as error:
        next(stream)
    assert error.value.images == [2]
