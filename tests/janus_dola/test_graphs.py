"""Captures of CUDA graphs, and what they leave behind where they fail, on functions of torch.cuda that are replaced."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from janus_dola.engine import devices
from janus_dola.engine.devices import capture
from janus_dola.models import storage
from janus_dola.models.contexts import undisturbed

DEVICE, POOL = torch.device("cuda:1"), (0, 7)


class Cuda:
    """The state of a process that a capture changes: the stream, the pool that is allocated from, what may wait."""

    def __init__(self, monkeypatch, ends=True):
        cuda, self.streams, self.waiting = self, [], []
        self.stream = self.before = SimpleNamespace(device_index=1)
        self.pool, self.mode, self.ends = None, 0, ends

        class Graph:
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
                    raise RuntimeError("the capture was invalidated")
                cuda.stream, cuda.pool = self.outside, None

        def new_stream(device):
            self.streams.append(device)
            return SimpleNamespace(device_index=device.index)

        def end_allocating(device, pool):
            assert device == 1
            if self.pool != pool:
                raise RuntimeError("not allocating to it")
            self.pool = None

        for name, stand_in in {
            "CUDAGraph": Graph, "graph": Capture, "Stream": new_stream, "current_stream": lambda device: self.stream,
            "set_stream": lambda stream: setattr(self, "stream", stream), "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": lambda mode: setattr(self, "mode", mode),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch.cuda.memory, "_cuda_endAllocateToPool", end_allocating)
        devices.stream_for.cache_clear()


@pytest.fixture
def cuda(monkeypatch):
    yield Cuda(monkeypatch)
    devices.stream_for.cache_clear()


def test_all_captures_of_a_device_share_a_stream_that_pictures_do_not_use(cuda):
    seen = []
    for _ in range(3):
        capture(lambda: seen.append(cuda.stream), DEVICE, POOL)
    assert seen[0] is seen[1] is seen[2] is not cuda.before
    assert devices.stream_for("pictures", DEVICE) is devices.stream_for("pictures", DEVICE) is not seen[0]
    capture(lambda: None, torch.device("cuda:0"), POOL)
    assert [device.index for device in cuda.streams] == [1, 1, 0]
    assert (cuda.stream, cuda.pool) == (cuda.before, None)


def test_a_generator_of_ones_own_is_known_to_the_graph(cuda):
    generator = torch.Generator()
    assert capture(lambda: None, DEVICE, POOL, generator).generator is generator


@pytest.mark.parametrize("ends", [True, False], ids=["the capture ends", "ending it fails, too"])
@pytest.mark.parametrize("error", [RuntimeError, TypeError, KeyboardInterrupt])
def test_after_a_capture_that_failed_stream_and_allocator_are_as_they_were(cuda, ends, error):
    def fail():
        assert cuda.stream is not cuda.before
        assert cuda.pool == POOL
        raise error("in the middle")

    cuda.ends = ends
    with pytest.raises(error if ends else RuntimeError, match="in the middle" if ends else "invalidated"):
        capture(fail, DEVICE, POOL)
    assert (cuda.stream, cuda.pool) == (cuda.before, None)


def test_what_waits_raises_before_a_capture_and_not_after_it(cuda):
    with devices.waits_are_errors():
        assert cuda.mode == "error"
    with pytest.raises(KeyError), devices.waits_are_errors():
        raise KeyError
    assert cuda.mode == 0


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_bfloat16_gets_float16(monkeypatch, native, dtype):
    """T4 and V100 emulate it, slowly, and say that they have it unless asked."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    assert storage.default_dtype(torch.device("cuda")) == dtype
    assert storage.default_dtype(torch.device("mps")) == torch.bfloat16
    assert storage.default_dtype(torch.device("cpu")) == torch.float32


def test_attention_by_torch_is_of_one_kind_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    for device, pinned in (("cuda", True), ("cpu", False)):
        with undisturbed(torch.device(device)):
            kinds = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled())
            assert kinds == ((False, False) if pinned else (True, True))
            assert torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
