"""Captures of CUDA graphs, and what they leave behind where they fail, on functions of torch.cuda that are replaced."""

import gc
import threading
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from janus_dola.engine import devices
from janus_dola.engine.devices import capture
from janus_dola.models import storage
from janus_dola.models.contexts import undisturbed

DEVICE, POOL, FRESH_POOL = torch.device("cuda:1"), (0, 7), (0, 8)
RING = 4  # streams of a device, which torch hands out in turn; its own ring has 32


class Cuda:
    """The state of a process that a capture changes: the stream, the pool that is allocated from, what may wait."""

    def __init__(self, monkeypatch, ends=True):
        cuda, self.streams, self.graphs = self, [], []
        self.stream = self.before = SimpleNamespace(device_index=1)
        self.pool, self.ends, self.ends_later = None, ends, False

        class Graph:
            def __init__(self):
                cuda.graphs.append(weakref.ref(self))

            def register_generator_state(self, generator):
                self.generator = generator

        class Capture:
            """As torch's: where ending the capture fails it restores nothing."""

            def __init__(self, graph, pool, stream, capture_error_mode):
                assert capture_error_mode == "thread_local"
                self.pool, self.stream = pool, stream

            def __enter__(self):
                self.outside, cuda.stream, cuda.pool = cuda.stream, self.stream, self.pool

            def __exit__(self, *_):
                if not cuda.ends:
                    cuda.ends = cuda.ends_later
                    raise RuntimeError("the capture was invalidated")
                cuda.stream, cuda.pool = self.outside, None

        def new_stream(device):
            self.streams.append(device)
            return SimpleNamespace(device_index=device.index, number=len(self.streams) % RING)

        def end_allocating(device, pool):
            assert device == 1
            if self.pool != pool:
                raise RuntimeError("not allocating to it")
            self.pool = None

        for name, stand_in in {
            "CUDAGraph": Graph, "graph": Capture, "Stream": new_stream, "current_stream": lambda device: self.stream,
            "set_stream": lambda stream: setattr(self, "stream", stream), "graph_pool_handle": lambda: FRESH_POOL,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch.cuda.memory, "_cuda_endAllocateToPool", end_allocating)
        monkeypatch.setattr(devices, "_streams", {})
        monkeypatch.setattr(devices, "_unended", [])


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


def test_all_captures_of_a_device_share_a_stream_that_pictures_do_not_use(cuda):
    seen = []
    for _ in range(3):
        capture(lambda: seen.append(cuda.stream), DEVICE, POOL)
    assert seen[0] is seen[1] is seen[2] is not cuda.before
    for _ in range(RING - 1):  # somebody else's
        torch.cuda.Stream(DEVICE)
    assert devices.stream_for("pictures", DEVICE) is devices.stream_for("pictures", DEVICE) != seen[0]
    capture(lambda: None, torch.device("cuda:0"), POOL)
    assert [device.index for device in cuda.streams] == [1] * (1 + RING - 1 + 2) + [0]
    assert (cuda.stream, cuda.pool) == (cuda.before, None)


def test_a_generator_of_ones_own_is_known_to_the_graph(cuda):
    generator = torch.Generator()
    assert capture(lambda: None, DEVICE, POOL, generator).generator is generator


@pytest.mark.parametrize("ends", [True, False], ids=["the capture ends", "ending it fails, too"])
@pytest.mark.parametrize("error", [RuntimeError, TypeError, KeyboardInterrupt])
def test_after_a_capture_that_failed_stream_and_allocator_are_as_they_were(cuda, ends, error):
    def fail():
        assert cuda.stream is not cuda.before
        assert cuda.pool in (POOL, FRESH_POOL)
        raise error("in the middle")

    cuda.ends = ends
    with pytest.raises(error if ends else RuntimeError, match="in the middle" if ends else "invalidated"):
        capture(fail, DEVICE, POOL)
    assert (cuda.stream, cuda.pool) == (cuda.before, None)


@pytest.mark.parametrize("ends", [True, False], ids=["the capture ends", "ending it fails, too"])
def test_a_capture_that_another_thread_spoiled_is_made_again_in_a_pool_of_its_own(cuda, ends):
    """And its graph stays where torch's allocators go on asking it."""
    pools = []

    def spoiled_once():
        pools.append(cuda.pool)
        if len(pools) == 1:
            raise RuntimeError("operation failed due to a previous error during capture")

    cuda.ends, cuda.ends_later = ends, True
    capture(spoiled_once, DEVICE, POOL)
    assert pools == [POOL, FRESH_POOL]
    assert (cuda.stream, cuda.pool) == (cuda.before, None)
    gc.collect()
    assert [graph() is not None for graph in cuda.graphs] == [not ends, False]


def test_what_does_not_fit_into_memory_is_not_tried_again(cuda):
    runs = []

    def no_memory():
        runs.append(1)
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        capture(no_memory, DEVICE, POOL)
    assert len(runs) == 1


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_bfloat16_gets_float16(monkeypatch, native, dtype):
    """T4 and V100 emulate it, slowly, and say that they have it unless asked."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    assert storage.default_dtype(torch.device("cuda")) == dtype
    assert storage.default_dtype(torch.device("mps")) == torch.bfloat16
    assert storage.default_dtype(torch.device("cpu")) == torch.float32


def kinds_of_attention():
    return torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()


def test_attention_by_torch_is_of_one_kind_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    for device, pinned in (("cuda", True), ("cpu", False)):
        with undisturbed(torch.device(device)):
            assert kinds_of_attention() == ((False, False) if pinned else (True, True))
            assert torch.backends.cuda.mem_efficient_sdp_enabled()
    assert kinds_of_attention() == (True, True)


def test_attention_is_as_before_when_two_threads_left_in_the_order_they_came(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    first_in, second_in, first_out, seen = threading.Event(), threading.Event(), threading.Event(), []

    def first():
        with undisturbed(DEVICE):
            first_in.set()
            second_in.wait(10)
        seen.append(kinds_of_attention())  # the other one still draws
        first_out.set()

    def second():
        first_in.wait(10)
        with undisturbed(DEVICE):
            second_in.set()
            first_out.wait(10)

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [*seen, kinds_of_attention()] == [(False, False), (True, True)]
