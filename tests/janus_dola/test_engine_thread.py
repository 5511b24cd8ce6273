"""Who is drawn when, and what happens to each image, without HTTP."""

import contextlib
import copy
import queue
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_dola.engine.capacity import window_of
from janus_dola.engine.engine import Engine
from janus_dola.images.outputs import NonFiniteError
from janus_dola.serve.engine_thread import EngineThread, FinishedImage, PartialImage
from janus_dola.serve.metrics import Metrics
from janus_dola.serve.pictures import PictureThread
from janus_dola.serve.queue import FairQueue, FullError
from janus_dola.serve.requests import ImagesRequest, Reader
from janus_dola.settings import DrawSettings
from tests.janus_dola.server import until


@dataclass(frozen=True)
class Waiting:
    kind: str
    name: int
    client: str = "one"


def take_all(waiting):
    return [item.name for item in iter(lambda: waiting.take({}, 8), None)]


def test_images_of_one_kind_come_in_order_of_arrival():
    waiting = FairQueue(8)
    waiting.put([Waiting("a", 0), Waiting("a", 1)])
    assert waiting.begin_turn()
    assert waiting.at_once({}, 8) == 2
    waiting.put([Waiting("a", 2)])
    assert take_all(waiting) == [0, 1, 2]


def test_a_turn_takes_no_late_images_while_another_kind_waits():
    waiting = FairQueue(8)
    waiting.put([Waiting("a", 0), Waiting("b", 1), Waiting("a", 2)])
    assert waiting.begin_turn()
    assert waiting.at_once({}, 8) == 2
    waiting.put([Waiting("a", 3)])
    assert take_all(waiting) == [0, 2]
    assert waiting.begin_turn()  # of b, the oldest
    assert take_all(waiting) == [1]
    assert waiting.begin_turn()
    assert take_all(waiting) == [3]


def test_a_full_queue_takes_all_images_of_a_request_or_none():
    waiting = FairQueue(3)
    waiting.put([Waiting("a", 0), Waiting("a", 1)])
    with pytest.raises(FullError, match="2 images are in hand already, and at most 3 may be"):
        waiting.put([Waiting("a", 2), Waiting("a", 3)])
    assert len(waiting) == 2


def test_what_is_put_back_comes_before_all_others():
    waiting = FairQueue(1)
    waiting.put([Waiting("b", 1)])
    waiting.put_back([Waiting("a", 0)])
    assert waiting.begin_turn()
    assert take_all(waiting) == [0]


def test_a_closed_queue_gives_back_what_waits_and_ends_waiting():
    waiting = FairQueue(2)
    ended = threading.Thread(target=waiting.begin_turn)
    ended.start()
    assert waiting.close() == []
    ended.join(10)
    assert not ended.is_alive()


def test_clients_are_served_in_rounds():
    waiting = FairQueue(64)
    waiting.put([Waiting("a", name, "greedy") for name in range(6)])
    assert waiting.begin_turn()
    assert [waiting.take({}, 8).name for _ in range(2)] == [0, 1]
    waiting.put([Waiting("a", name, "honest") for name in (10, 11)])
    assert take_all(waiting) == [10, 2, 11, 3, 4, 5]


def test_a_client_that_comes_late_waits_for_one_turn_however_many_kinds_wait():
    waiting = FairQueue(64)
    waiting.put([Waiting("a" if name % 3 == 0 else f"kind {name}", name, "greedy") for name in range(24)])
    assert waiting.begin_turn()
    while waiting.take({}, 64):  # those of kind a, to the last round but two
        pass
    waiting.put([Waiting("b", 30, "honest")])
    assert waiting.begin_turn()
    taken = [waiting.take({}, 64).name]
    if taken != [30]:
        assert waiting.take({}, 64) is None
        assert waiting.begin_turn()
        assert waiting.take({}, 64).name == 30


def test_a_client_that_is_not_alone_has_a_share_of_what_is_drawn_at_once():
    waiting = FairQueue(64)
    waiting.put([Waiting("a", name, "greedy") for name in range(20)])
    assert waiting.begin_turn()
    assert waiting.at_once({}, 8) == 20
    waiting.put([Waiting("a", 20, "honest")])
    assert waiting.at_once({}, 8) == 5
    taken, drawing = [], Counter()
    while item := waiting.take(drawing, 8):
        taken.append(item.client)
        drawing[item.client] += 1
    assert drawing == {"greedy": 4, "honest": 1}
    assert waiting.at_once({"greedy": 4}, 8) == 5  # a slot is kept for who was there a moment ago


def test_a_turn_ends_early_for_a_client_that_has_nothing_in_it():
    waiting = FairQueue(64)
    waiting.put([Waiting("a", name, "greedy") for name in range(20)])
    assert waiting.begin_turn()
    assert [waiting.take({}, 8).name for _ in range(3)] == [0, 1, 2]
    waiting.put([Waiting("b", 20, "honest")])
    assert waiting.take({"greedy": 3}, 8) is None
    assert waiting.begin_turn()
    assert waiting.take({}, 8).name == 20


def test_clients_leave_room_in_the_queue_for_others():
    waiting = FairQueue(64)
    waiting.put([Waiting("a", 0, "greedy")] * 32)
    with pytest.raises(
        FullError, match="32 images of this client are in hand already, and one client may have 32 while others have 0"
    ):
        waiting.put([Waiting("a", 0, "greedy")])
    for k in range(300):  # each tries once; one more fits always
        with contextlib.suppress(FullError):
            waiting.put([Waiting("a", k, "second")])
    assert len(waiting) < 64
    waiting.put([Waiting("a", 1, "honest")])


def test_who_comes_late_has_no_more_than_who_waited():
    waiting = FairQueue(64)
    waiting.put([Waiting("a", k, "first") for k in range(3)])
    assert waiting.begin_turn()
    assert waiting.take({}, 8).name == 0
    waiting.put([Waiting("a", 10 + k, "late") for k in range(3)])
    assert take_all(waiting) == [10, 1, 11, 2, 12]


def test_pictures_come_in_order_while_few_wait_and_else_finished_ones_first():
    begin, made = threading.Event(), []
    thread = PictureThread(lambda image, make: (begin.wait(10), made.append(make())))
    thread.finish("first", lambda: "first")
    for number in range(3):
        thread.show("a", lambda number=number: f"a{number}")
    thread.finish("a", lambda: "a")
    begin.set()
    until(lambda: len(made) == 5)
    assert made == ["first", "a0", "a1", "a2", "a"]
    begin.clear()
    made.clear()
    thread.finish("first", lambda: "first")
    for number in range(4):
        for name in "bcdefghij":
            thread.show(name, lambda name=name, number=number: f"{name}{number}")
    thread.finish("b", lambda: "b")
    begin.set()
    thread.close()
    assert made[:2] == ["first", "b"]  # none of b's partial pictures
    assert [each for each in made if each.startswith("j")] == ["j3"]


def test_partial_pictures_take_half_of_the_time_where_clients_share_it_and_hold_no_finished_one():
    made, first_begun, f_is_there = [], threading.Event(), threading.Event()

    def first():
        first_begun.set()
        f_is_there.wait()
        return "a"

    thread = PictureThread(lambda image, make: (time.sleep(0.02), made.append(make())), shared=lambda: True)
    began = time.monotonic()
    for name in "abcde":
        thread.show(name, first if name == "a" else lambda name=name: name)
    first_begun.wait()
    thread.finish("f", lambda: "f")
    f_is_there.set()
    thread.close()
    assert made == ["a", "f", "b", "c", "d", "e"]
    assert time.monotonic() - began >= 0.02 * 9


@given(
    arrivals=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40),
    slots=st.integers(1, 4),
)
def test_nobody_is_overtaken_by_more_than_one_turn_of_each_kind(arrivals, slots):
    """Whatever arrives: an image is taken at the latest when each other kind has had its turn since it came."""
    waiting, coming = FairQueue(100), list(enumerate(arrivals))
    turns_since: dict[int, list[str]] = {}

    def arrive():
        while coming:
            name, (kind, pause) = coming.pop(0)
            waiting.put([Waiting(kind, name)])
            turns_since[name] = []
            if pause:
                return

    arrive()
    while len(waiting):
        assert waiting.begin_turn()
        oldest = min(turns_since)
        taken = []
        for _ in range(slots * 2):
            item = waiting.take({}, 8)
            if item is None:
                break
            taken.append(item)
            del turns_since[item.name]
            arrive()
        assert oldest in {item.name for item in taken}
        (kind,) = {item.kind for item in taken}
        for kinds in turns_since.values():
            kinds.append(kind)
        arrive()
    assert not turns_since


@pytest.fixture(scope="module")
def reader(mini):
    return Reader(mini, "mini")


@pytest.fixture
def worker(mini, reader):
    made = EngineThread(Engine(mini.image_model), 4, reader.longest, 64, Metrics())
    yield made
    made.close()


@pytest.fixture
def ask(worker, reader):
    """Puts a request into the queue: its images, and the queue of what is told of them."""

    def ask(**fields):
        outbox = queue.Queue()
        request = reader.read(ImagesRequest(**fields), outbox.put)
        worker.ask(request.images)
        return request, outbox

    return ask


def test_a_request_that_spells_out_every_default_is_one_that_leaves_them_out(reader):
    defaults = {
        name: field["default"]
        for name, field in ImagesRequest.model_json_schema()["properties"].items()
        if "default" in field
    }
    spelled_out = reader.read(ImagesRequest(**{**defaults, "prompt": "a red circle", "seed": 3}), print)
    assert spelled_out.recipes == reader.read(ImagesRequest(prompt="a red circle", seed=3), print).recipes


def test_recipes_name_the_models_folder_and_its_revision_and_not_its_path(mini):
    pipe = copy.copy(mini)
    pipe.model_name, pipe.revision = "folder", "v1"
    recipe = Reader(pipe, "/home/me/folder").read(ImagesRequest(prompt="a red circle", seed=3), print).recipes[0]
    assert (recipe.model, recipe.revision, recipe.seed) == ("folder", "v1", 3)
    assert "/home/me" not in recipe.to_json()


def finished(outbox, images):
    by_name = {}
    while len(by_name) < images:
        event = outbox.get(timeout=60)
        if isinstance(event, FinishedImage):
            by_name[event.k] = event
        else:
            assert isinstance(event, PartialImage), event
    return [by_name[k] for k in range(images)]


LOOKS = [
    {"seed": 1},
    {"seed": 2, "cfg_weight": 2.0, "temperature": 0.5},
    {"seed": 3, "dola": False},
    {"seed": 4, "premature_layer": 4, "alpha": 0.3, "beta": 0.5},
    {"seed": 5, "premature_layer": 3},  # not among the candidates
    {"seed": 6, "candidate_layers": [1, 5]},
    {"seed": 7, "temperature": 0.0, "premature_layer": "final"},
    {"seed": 8, "negative_prompt": "a large blue square"},
]


def test_images_of_any_settings_together_are_those_of_generate(mini, ask):
    prompts = [f"a {('red', 'blue')[i % 2]} circle" for i in range(len(LOOKS))]
    requests = [ask(prompt=prompt, n=2, **look) for prompt, look in zip(prompts, LOOKS, strict=True)]
    for (_, outbox), prompt, look in zip(requests, prompts, LOOKS, strict=True):
        settings = {name: value for name, value in look.items() if name != "seed"}
        expected = mini.generate(prompt, 2, DrawSettings().changed(settings), seed=look["seed"])
        for k, actual in enumerate(finished(outbox, 2)):
            assert torch.equal(actual.codes.tokens, expected.tokens[0, k]), look
            assert torch.equal(actual.codes.premature_layers, expected.premature_layers[0, k]), look
            assert actual.picture.tobytes() == expected.images[0][k].tobytes()


def test_a_gpu_draws_a_lone_image_by_the_passes_of_generate_and_many_by_few_numbers_of_slots(mini, reader):
    engine = Engine(mini.image_model)
    worker = EngineThread(engine, 40, reader.longest, 64, Metrics())
    worker._on_gpu = True
    assert [worker._size(images) for images in (1, 2, 4, 5, 16, 17, 70)] == [1, 4, 4, 16, 16, 40, 40]
    outbox = queue.Queue()
    worker.ask(reader.read(ImagesRequest(prompt="a red circle", seed=1), outbox.put).images)
    codes = finished(outbox, 1)[0].codes
    worker.close()
    alone = mini.generate("a red circle", 1, seed=1)
    assert (codes.slots, codes.window, int(codes.passes)) == (
        1,
        window_of(1, mini.image_model),
        int(alone.passes[0, 0]),
    )


def test_a_client_that_comes_later_does_not_wait_for_the_many_images_of_another(mini, reader):
    worker = EngineThread(Engine(mini.image_model), 8, reader.longest, 64, Metrics())
    outbox, order = queue.Queue(), []
    requests = [
        reader.read(ImagesRequest(prompt="a red circle", seed=k), lambda event, k=k: outbox.put((k, event)))
        for k in range(11)
    ]
    worker.ask([image for request in requests[:10] for image in request.images], "greedy")
    until(lambda: worker._metrics.passes._value.get() > 1)
    worker.ask(requests[10].images, "honest")
    while len(order) < len(requests):
        k, event = outbox.get(timeout=60)
        order.append(k)
        if k == 7:  # begun, put back and begun again
            assert torch.equal(event.codes.tokens, mini.generate("a red circle", seed=k).tokens[0, 0])
    worker.close()
    assert sorted(order) == list(range(11))
    assert order.index(10) < 4


def test_most_settings_share_passes(reader):
    kinds = {reader.read(ImagesRequest(prompt="a", **look), print).images[0].layers for look in LOOKS}
    assert kinds == {(2, 4, 6), (3,), (1, 5)}


def test_partial_pictures_show_what_is_drawn_and_grey(ask):
    _, outbox = ask(prompt="a large red circle on white", seed=1, partial_images=3, stream=True)
    events = [outbox.get(timeout=60) for _ in range(4)]
    pictures = [event.picture for event in events]
    assert [type(event) for event in events] == [*[PartialImage] * 3, FinishedImage]
    assert [event.number for event in events[:3]] == [0, 1, 2]
    grey = [picture.convert("RGB").tobytes().count(bytes([128, 128, 128])) / (64 * 64) for picture in pictures]
    assert 0.75 >= grey[0] > grey[1] > grey[2] > 0 == grey[3]
    top = [torch.tensor(list(picture.crop((0, 0, 64, 16)).tobytes())).float() for picture in pictures]
    assert all((each - top[-1]).abs().mean() < 16 for each in top)  # the decoder sees the whole image


def test_what_is_given_up_frees_its_slots_and_is_told_nothing(worker, ask):
    given_up = [ask(prompt="a red circle", n=4, seed=1) for _ in range(5)]
    for request, _ in given_up:
        worker.release(request.images)
    assert len(worker.queue) == 0
    _, outbox = ask(prompt="a red circle", n=1, seed=9)
    finished(outbox, 1)
    drawn = worker._metrics.images._value.get()
    assert drawn == 1
    assert all(outbox.empty() for _, outbox in given_up)


def test_nan_in_one_image_fails_that_image_alone(mini, reader):
    bad = "a red circle on white"
    ids = reader.read(ImagesRequest(prompt=bad), print).images[0].job.rows[0]

    class Poisoned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = mini.image_model.embed_text

        def forward(self, given):
            actual = self.embed(given)
            return actual * float("nan") if given.tolist()[: len(ids)] == ids else actual

    image_model = replace(mini.image_model, embed_text=Poisoned())
    worker = EngineThread(Engine(image_model), 4, reader.longest, 64, Metrics())
    outbox = queue.Queue()
    images = [
        reader.read(
            ImagesRequest(prompt=prompt, seed=k), lambda event, prompt=prompt: outbox.put((prompt, event))
        ).images[0]
        for k, prompt in enumerate(["a red circle", bad, "a blue circle"])
    ]
    worker.ask(images)
    events = dict(outbox.get(timeout=60) for _ in images)
    worker.close()
    assert isinstance(events.pop(bad).error, NonFiniteError)
    assert all(isinstance(event, FinishedImage) for event in events.values())


def test_an_error_of_the_engine_is_told_and_the_next_turn_goes_on(worker, ask, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("janus_dola.engine.slot_runner.SlotRunner.advance", lambda self: 1 / 0)
        _, outbox = ask(prompt="a red circle", n=2, seed=1)
        events = [outbox.get(timeout=60) for _ in range(2)]
    assert all(isinstance(event.error, ZeroDivisionError) for event in events)
    finished(ask(prompt="a red circle", seed=1)[1], 1)


@pytest.mark.usefixtures("room_for_one_slot")
def test_where_memory_runs_out_half_as_many_slots_draw_all(worker, ask):
    _, outbox = ask(prompt="a red circle", n=4, seed=1)
    finished(outbox, 4)
    assert worker.most == 1
