"""Images going through slots: nothing of one depends on its neighbours, on when it joined, or on who else draws."""

import copy
import threading
import types
from dataclasses import replace

import pytest
import torch

from janus_dola import DoLaConfig, JanusDoLa, NonFiniteError
from janus_dola.engine import decoder, slot_runner
from janus_dola.engine.capacity import bucket_of, images_that_fit
from janus_dola.engine.decoder import Decoder
from janus_dola.engine.jobs import Job, JobQueue
from janus_dola.engine.plan import make_plan
from janus_dola.engine.slot_runner import SlotRunner
from janus_dola.models import PromptRows
from janus_dola.settings import DrawSettings

PROMPTS = ["a large red circle on white", "a small blue square on grey", "a green cross"]
FILLERS = ["x", "a small purple cross on a black background, please, and nothing else", "a blue square"]


def same_bits(image, other) -> bool:
    """Of two images, or their codes."""
    return torch.equal(image.tokens, other.tokens) and torch.equal(image.jsd, other.jsd)


@pytest.fixture(scope="module")
def half(short) -> dict[torch.dtype, JanusDoLa]:
    """The mini model in other dtypes."""
    result = {torch.float32: short}
    for dtype in (torch.bfloat16, torch.float16):
        result[dtype] = JanusDoLa(copy.deepcopy(short.model).to(dtype), short.tokenizer)
    return result


@pytest.mark.parametrize(
    ("dtype", "slots", "window"),
    [
        *((torch.float32, 2, 1), (torch.float32, 2, 8), (torch.float32, 3, 1), (torch.float32, 5, 1)),
        *((torch.bfloat16, 2, 4), (torch.float16, 2, 4)),
    ],
    ids=str,
)
def test_bits_of_an_image_do_not_depend_on_its_neighbours(half, dtype, slots, window):
    """With the same number of slots and the same window: whoever is beside it, where it is, and whenever it joins."""
    pipe = half[dtype]

    def codes_of(jobs, index):
        return draw(pipe, jobs, window, slots)[index]

    first = [PROMPTS[0], *["x"] * (slots - 1)]
    alone = codes_of(jobs_for(pipe, first, [7 + i for i in range(slots)]), 0)
    for before in ([FILLERS[1]], [FILLERS[2], *FILLERS[:2]]):
        prompts = [*before, PROMPTS[0], *FILLERS[2:] * (slots - 1)]
        at = len(before)
        seeds = [100 + i for i in range(len(prompts))]
        seeds[at] = 7
        assert same_bits(codes_of(jobs_for(pipe, prompts, seeds), at), alone)


@pytest.mark.parametrize(("dtype", "window"), [(torch.float32, 4), (torch.bfloat16, 2)], ids=str)
def test_bits_of_an_image_do_not_depend_on_its_neighbours_settings(half, dtype, window):
    """Guidance, temperature, plausibility and layer are the image's own, baseline included, in the same passes."""
    pipe, layers = half[dtype], plan_of(half[dtype]).layers
    of_images = [
        DrawSettings(),
        DrawSettings(2.0, 0.0, None),
        DrawSettings(7.0, 0.7, DoLaConfig(alpha=0.5, premature_layer=layers[0])),
        DrawSettings(3.0, 1.3, DoLaConfig(alpha=0.3, premature_layer="final")),
        DrawSettings(contrast=None),
    ]

    def codes_of(of_images):
        jobs = [
            Job(i, i, 0, pipe.encode(PROMPTS[i % 3])[0], 7 + i, settings.sampling_params(layers))
            for i, settings in enumerate(of_images)
        ]
        return draw(pipe, jobs, window, 3)

    together = codes_of(of_images)
    for image, settings in enumerate(of_images):
        assert same_bits(together[image], codes_of([settings] * len(of_images))[image])
    if dtype == torch.float32:  # and they are those of passes that read no more than an image needs
        for image, settings in enumerate(of_images):
            (alone,) = pipe.stream(PROMPTS[image % 3], 1, settings, seed=7 + image)
            assert torch.equal(alone.tokens, together[image].tokens)
            assert torch.equal(alone.premature_layers, together[image].premature_layers)


def plan_of(pipe):
    return make_plan(pipe.image_model, DrawSettings())


def jobs_for(pipe, prompts, seeds):
    params = DrawSettings().sampling_params(plan_of(pipe).layers)
    return [Job(i, i, 0, pipe.encode(prompt)[0], seeds[i], params) for i, prompt in enumerate(prompts)]


def draw(pipe, jobs, window, slots):
    """The codes of jobs in order, at most so many at once."""
    drawn = pipe.engine.draw(JobQueue(jobs), plan_of(pipe), window, slots)
    return [codes for _, codes in sorted(drawn, key=lambda image: image[0].index)]


@pytest.mark.parametrize("window", [1, 8])
@pytest.mark.parametrize("settings", [DrawSettings(1.0), DrawSettings(1.0, 0.5, None, top_k=50)], ids=["dola", "top-k"])
def test_where_nothing_guides_one_row_draws_what_two_do(short, settings, window):
    plan = make_plan(short.image_model, settings)
    one = settings.sampling_params(plan.layers)
    two = replace(one, cfg_weight=1.0)
    drawn = []
    for params in (one, two):
        jobs = [Job(i, i, 0, short.encode(PROMPTS[i])[0], 7 + i, params) for i in range(3)]
        with short.engine.runner(replace(plan, kind=params.kind), 2, 20, params, window) as runner:
            keys_values = runner.decoder.keys_values
            queue = JobQueue(jobs)
            first = [queue.take_if(lambda _: True) for _ in range(2)]
            images = sorted(runner.run(first, queue), key=lambda image: image[0].index)
        drawn.append(([codes for _, codes in images], keys_values.nbytes))
    assert 2 * drawn[0][1] == drawn[1][1]
    for alone, guided in zip(drawn[0][0], drawn[1][0], strict=True):
        assert torch.equal(alone.tokens, guided.tokens)
        assert torch.equal(alone.premature_layers, guided.premature_layers)


@pytest.mark.parametrize("window", [1, 8])
def test_an_image_that_is_not_finite_leaves_its_neighbours_bits_alone(short, monkeypatch, window):
    """Nor those of the image that comes into its slot."""
    prompts = [*PROMPTS, *FILLERS]
    expected = list(short.stream(prompts, max_images=2, window=window))
    step, calls = Decoder.step, []

    def poisoned(decoder, visible):
        step(decoder, visible)
        calls.append(1)
        if len(calls) == 4:
            decoder.keys_values[2, 1] = float("nan")  # the conditional row of the second slot

    monkeypatch.setattr(Decoder, "step", poisoned)
    with pytest.raises(NonFiniteError, match=r"became NaN or infinite for image\(s\) \[1\], counted over all") as error:
        short.generate(prompts[:2], window=window)
    assert error.value.images == [1]
    assert [same_bits(image, expected[0]) for image in error.value.drawn] == [True]
    calls.clear()
    actual = draw(short, jobs_for(short, prompts, range(len(prompts))), window, 2)
    assert [bool(codes.finite) for codes in actual] == [i != 1 for i in range(len(prompts))]
    assert all(same_bits(a, b) for i, (a, b) in enumerate(zip(actual, expected, strict=True)) if i != 1)


def test_pixels_that_are_not_finite_are_reported_and_not_drawn_black(mini):
    pipe = JanusDoLa(copy.deepcopy(mini.model), mini.tokenizer)
    pipe.model.model.vqmodel.decoder.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="pixels became NaN or infinite") as error:
        pipe.generate(PROMPTS[:2])
    assert error.value.images == [0, 1]


def test_four_threads_draw_what_one_after_the_other_does(short):
    calls = [
        {"prompts": PROMPTS[i % 3 :], "seed": 10 * i, "window": (1, 8)[i % 2], "temperature": (1.0, 0.5)[i // 2 % 2]}
        for i in range(4)
    ]
    calls = [{**call, "parallel_size": 6 // len(call["prompts"])} for call in calls]
    expected = [short.generate(**call) for call in calls]
    results = [None] * len(calls)

    def run(i):
        results[i] = short.generate(**calls[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(results, expected, strict=True):
        assert one.tokens.shape[:2].numel() == 6
        assert torch.equal(one.tokens, other.tokens)


def test_drawing_within_a_stream_that_goes_on(short):
    expected = short.generate(PROMPTS, seed=3).tokens[:, 0]
    for image in short.stream(PROMPTS, seed=3, max_images=1):
        assert torch.equal(short.generate(PROMPTS[image.prompt], seed=image.seed).tokens[0, 0], expected[image.prompt])
        assert torch.equal(image.tokens, expected[image.prompt])


def test_images_are_yielded_in_order_however_long_they_take(short):
    drawn = list(short.stream(PROMPTS + FILLERS, 2, max_images=3))
    assert [(image.prompt, image.k) for image in drawn] == [(i, k) for i in range(6) for k in range(2)]
    assert len({image.passes for image in drawn}) > 1


def test_a_slot_that_is_free_is_filled_at_once(short, monkeypatch):
    """No pass is run with an empty slot while images wait."""
    waiting, advance = [], SlotRunner.advance

    def watched(runner):
        waiting.append(len(runner.jobs))
        return advance(runner)

    monkeypatch.setattr(SlotRunner, "advance", watched)
    drawn = list(short.stream(PROMPTS * 3, max_images=2))
    assert len(drawn) == 9
    alone = next(i for i, busy in enumerate(waiting) if busy < 2)
    assert sum(waiting) == sum(image.passes for image in drawn)
    assert set(waiting[:alone]) == {2}
    assert set(waiting[alone:]) == {1}


def test_an_empty_slot_is_fed_at_its_first_position(mini, monkeypatch):
    """Where attention has next to nothing to look at: before its first image, and after one is done or cancelled."""
    starts, pass_start = [], decoder.PassStart

    def noted(start, *rest):
        starts.append(start.view(2, -1)[0])
        return pass_start(start, *rest)

    monkeypatch.setattr(decoder, "PassStart", noted)
    first, other = jobs_for(mini, PROMPTS[:2], [3, 4])
    with mini.engine.runner(plan_of(mini), 3, 60, first.params, window=8) as runner:
        runner.admit([first])
        runner.advance()
        assert (starts[-1] > 0).tolist() == [True, False, False]
        runner.admit([other])
        runner.advance()
        runner.cancel(first)
        while runner.jobs:
            runner.advance()
            assert (starts[-1] > 0).tolist() == [False, True, False]
        runner.decoder.step(128)
        assert starts[-1].tolist() == [0, 0, 0]


class SlowDevice:
    """Events of a device that has done no pass before the host waits for it, or of one that is never behind."""

    def __init__(self, behind):
        self.behind, self.recorded, self.waits = behind, 0, 0

    def end_of_queue(self, device):
        self.recorded += 1
        return types.SimpleNamespace(query=lambda: not self.behind, synchronize=self.wait)

    def wait(self):
        self.waits += 1


@pytest.mark.parametrize("window", [1, 8])
@pytest.mark.parametrize("behind", [True, False])
def test_the_host_is_at_most_two_passes_ahead_and_waits_for_no_device_that_keeps_up(mini, monkeypatch, window, behind):
    expected = mini.generate(PROMPTS, seed=3, window=window).tokens
    device, advance, after = SlowDevice(behind), SlotRunner.advance, []

    def watched(runner):
        out = advance(runner)
        after.append(device.recorded - device.waits)
        return out

    monkeypatch.setattr(slot_runner, "end_of_queue", device.end_of_queue)
    monkeypatch.setattr(SlotRunner, "advance", watched)
    assert torch.equal(mini.generate(PROMPTS, seed=3, window=window).tokens, expected)
    if behind:
        assert max(after) == 2
    else:
        assert device.waits == 0


def jobs(lengths):
    return [
        Job(i, i, 0, PromptRows([0] * n, [0] * n), i, DrawSettings().sampling_params(())) for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("lengths", "limit", "sizes"),
    [
        ([5] * 7, lambda longest: 3, [3, 3, 1]),
        ([], lambda longest: 3, []),
        ([5, 5, 50, 5, 5], lambda longest: 2 if longest > 10 else 4, [2, 2, 1]),
        ([50, 50], lambda longest: 0, [1, 1]),
    ],
)
def test_so_many_begin_together_as_the_longest_prompt_allows(lengths, limit, sizes):
    queue, actual = JobQueue(iter(jobs(lengths))), []
    while together := queue.take_together(limit):
        actual.append(together)
    assert [len(together) for together in actual] == sizes
    assert [job.index for together in actual for job in together] == list(range(len(lengths)))


def test_jobs_are_kept_until_their_images_are_out():
    def read():
        yield from jobs([5, 5, 5, 5])
        raise ValueError("no more")

    queue = JobQueue(read())
    assert [job.index for job in queue.take_together(lambda longest: 3)] == [0, 1, 2]
    assert queue.together == 3
    queue.let_go()
    queue.put_back()
    assert (queue.out, queue.peek().index) == (1, 1)
    assert [job.index for job in queue.take_together(lambda longest: 2)] == [1, 2]
    assert queue.take_if(lambda job: False) is None
    assert queue.take_if(lambda job: True).index == 3
    assert queue.peek() is None
    queue.put_back()
    assert queue.peek().index == 1
    with pytest.raises(ValueError, match="no more"):
        queue.raise_error()


@pytest.mark.parametrize("window", [1, 8])
def test_an_image_that_is_cancelled_frees_its_slot_and_leaves_the_other_alone(short, window):
    first, other, late = jobs_for(short, PROMPTS, [3, 4, 5])
    alone = draw(short, [other], window, 2)[0]
    with short.engine.runner(plan_of(short), 2, 60, first.params, window) as runner:
        runner.admit([first])
        runner.admit([other])
        assert (runner.jobs, runner.free) == ([first, other], [])
        runner.advance()
        assert 2 <= runner.decided(other) <= 1 + window
        assert torch.equal(runner.codes(other).tokens[:2], alone.tokens[:2])
        runner.cancel(first)
        assert (runner.jobs, runner.free) == ([other], [0])
        runner.admit([late])
        while runner.jobs:
            for job, codes in runner.advance():
                if job is other:
                    assert torch.equal(codes.tokens, alone.tokens)
        assert runner.free == [0, 1]


def test_a_longer_prompt_waits_for_a_larger_buffer(short):
    long = "a large red circle on white" + " and a green cross" * 20
    prompts = [*PROMPTS, long, *FILLERS]
    drawn = list(short.stream(prompts, max_images=2))
    for i, prompt in enumerate(prompts):
        assert torch.equal(drawn[i].tokens, short.generate(prompt, seed=i).tokens[0, 0])


def test_an_error_comes_after_the_images_before_it(short):
    drawn = []
    with pytest.raises(ValueError, match="prompts must be strings, got 7"):
        drawn.extend(each.prompt for each in short.stream([*PROMPTS, 7, "a red circle"], max_images=2))
    assert drawn == [0, 1, 2]


def test_a_stream_is_what_generate_draws(mini):
    expected = mini.generate(PROMPTS, parallel_size=2, seed=5)
    for size in (1, 4, None):
        drawn = list(mini.stream(iter(PROMPTS), parallel_size=2, seed=5, max_images=size))
        assert [(each.prompt, each.k) for each in drawn] == [(i, k) for i in range(3) for k in range(2)]
        assert torch.equal(torch.stack([each.tokens for each in drawn]), expected.tokens.flatten(0, 1))
        assert [each.seed for each in drawn] == expected.seeds.flatten().tolist()
        assert {each.image.size for each in drawn} == {(64, 64)}


def test_a_stream_reads_prompts_as_it_needs_them(mini):
    read = []

    def prompts():
        for prompt in PROMPTS * 100:
            read.append(prompt)
            yield prompt

    stream = mini.stream(prompts(), max_images=2)
    next(stream)
    assert len(read) <= 4  # the images in hand, and those that came into their slots


@pytest.mark.parametrize(("room", "images"), [(0.5, 1), (3.5, 2), (15.9, 8), (16.1, 16), (10**6, 64)])
def test_free_memory_decides_on_a_gpu(mini, monkeypatch, room, images):
    """An image needs 2 rows x 192 positions (36 + 64 + 32, rounded up) x 8 blocks x 192 numbers x 2 x 4 bytes."""
    image_model = type("Parts", (), {**vars(mini.image_model), "num_layers": 8, "dtype": torch.float32})
    image_model.device = torch.device("cuda:1")
    free = int(room / 0.7 * 2 * 192 * 8 * 192 * 2 * 4)
    segments = [  # of tensors here, of graphs, which keep what they have, and of another GPU
        {"device": device, "total_size": 1000, "allocated_size": 950, "segment_pool_id": pool}
        for device, pool in ((1, (0, 0)), (1, (0, 7)), (0, (0, 0)))
    ]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - 100, 10**12))
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    assert images_that_fit(image_model, 36, kept_bytes=50) == images


def test_graphs_are_captured_for_few_sizes():
    images = (1, 2, 3, 4, 5, 8, 9, 16, 17, 64, 65)
    assert [bucket_of(count) for count in images] == [1, 2, 4, 4, 8, 8, 16, 16, 24, 64, 72]


def test_a_callback_is_told_of_all_codes_and_cancels_from_another_thread(mini):
    messages = []
    expected = mini.generate(["a green cross"] * 2, seed=4, callback=lambda *counts: messages.append(counts))
    assert messages[-1] == (2 * 64, 2 * 64)
    assert [done for done, _ in messages] == sorted({done for done, _ in messages})
    stop = threading.Event()
    threading.Timer(0.02, stop.set).start()

    def cancelled(done, total):
        if stop.wait(0.01):
            raise InterruptedError(done)

    with pytest.raises(InterruptedError) as raised:
        mini.generate(["a green cross"] * 8, window=1, callback=cancelled)
    assert raised.value.args[0] < 8 * 64
    assert torch.equal(mini.generate(["a green cross"] * 2, seed=4).tokens, expected.tokens)
