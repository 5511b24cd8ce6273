"""Computes apart from what the caller has switched on in torch.

Most of torch's switches are the thread's own: gradients, inference mode, autocast, the default device, fake tensors. They
are switched here and switched back, also after an error, and no other thread notices. Others are the whole process':

- the default dtype, deterministic algorithms, anomaly detection: never switched, since other threads may train meanwhile.
  Code names its dtypes, and takes operations whose results do not depend on the others.
- the precision of float32 products (`torch.set_float32_matmul_precision`), threads: the user's choice, which holds here.
- the kinds of attention on a GPU: switched while at least one thread draws, since torch has no other way to choose.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.attention import SDPBackend, sdpa_kernel

# Torch's attention on a GPU. By itself torch chooses by shape, and its first choice has not been tried with masks like ours.
_ATTENTION = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_CPU = torch.device("cpu")
_NO_MEMORY = re.compile(
    "MPS backend out of memory|Invalid buffer size"
)  # of RuntimeErrors; the second is of one tensor


class _Attention:
    """Chooses the kinds of attention while anyone is inside, and puts back the process' own when the last one leaves."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before.enter_context(sdpa_kernel(_ATTENTION))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._before.close()


_attention = _Attention()


@contextmanager
def undisturbed(device: torch.device = _CPU) -> Iterator[None]:
    """Turns off gradients and the caller's contexts in this thread: inference mode, autocast, default device, fake tensors.

    What is made inside can be kept, and used for a loss: it is no inference tensor. On CUDA it also sets the model's
    device, and one kind of torch's attention. On Apple's GPUs no memory is a torch.OutOfMemoryError as elsewhere. Nothing
    may be yielded to the caller inside.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # before the next: it turns gradients on
        stack.enter_context(torch.no_grad())
        for kind in {device.type, "cpu"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != _CPU:
            stack.enter_context(_CPU)
        stack.enter_context(unset_fake_temporarily())
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            stack.enter_context(_attention)
        try:
            yield
        except RuntimeError as error:
            if device.type == "mps" and _NO_MEMORY.match(str(error)):
                raise torch.OutOfMemoryError(str(error)) from error
            raise
