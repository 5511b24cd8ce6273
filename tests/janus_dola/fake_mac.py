"""An Apple GPU that is none: tensors on a CPU that say "mps", and go wrong where Apple's GPUs do.

Tensors are told apart by their storage. While the fake is switched on,

    integers are shifted wrong                     pytorch issue 147889
    a copy that does not wait copies nothing       pytorch issue 189690
    tensors of two devices do not go together
    an operation that makes too large a tensor     RuntimeError, not torch.OutOfMemoryError
    torch.cuda answers no question but whether it is there
"""

import math

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

MPS = torch.device("mps")
_DEVICE = Tensor.device.__get__
_APART = {  # what may mix devices
    Tensor.copy_, Tensor.to, Tensor.cpu, Tensor.__getitem__, Tensor.__setitem__, Tensor.data.__set__,
    torch._has_compatible_shallow_copy_type,
}  # fmt: skip
_SHIFTS = {Tensor.__rshift__, Tensor.__rlshift__, Tensor.__lshift__, torch.bitwise_right_shift}


class FakeMac(TorchFunctionMode):
    """Makes torch believe, in this thread, that "mps" is there; `room` is the most bytes that a tensor may have."""

    def __init__(self, room: float = math.inf) -> None:
        super().__init__()
        self.room, self._storages = room, {}  # kept, so that no address is given out again

    def is_on(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages

    def put(self, tensor: Tensor) -> Tensor:
        """Says that a new tensor is on the Mac's GPU."""
        if tensor.nbytes > self.room:
            raise RuntimeError(f"MPS backend out of memory (MPS allocated: 0 bytes). Tried to allocate {tensor.nbytes}")
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage
        return tensor

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        places = {self.is_on(tensor) for tensor in tensors}
        if func == _DEVICE and True in places:
            return MPS
        if func in (Tensor.to, Tensor.cpu):
            return self._to(func, *args, **kwargs)
        if func is Tensor.copy_ and kwargs.get("non_blocking") and len(places) == 2:
            return args[0]
        mixed = {self.is_on(tensor) for tensor in tensors if tensor.dim() > 0}
        if len(mixed) == 2 and func not in _APART:
            raise RuntimeError(f"Expected all tensors to be on the same device, in {func}")
        if func is Tensor.numpy and True in places:
            raise TypeError("can't convert mps:0 device type tensor to numpy")
        on_mac = True in places
        if "device" in kwargs:
            named = torch.device(kwargs["device"] if kwargs["device"] is not None else "cpu")
            on_mac = named.type == "mps"
            kwargs["device"] = "cpu" if on_mac else named
        result = func(*args, **kwargs)
        if on_mac:
            if func in _SHIFTS and not tensors[0].is_floating_point():
                result = torch.zeros_like(result)
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor) and not self.is_on(tensor):
                    self.put(tensor)
        return result

    def _to(self, func, tensor, *args, **kwargs):
        if func is Tensor.cpu:
            device, dtype, lazy = torch.device("cpu"), None, False
        elif args and isinstance(args[0], Tensor):
            device, dtype, lazy = MPS if self.is_on(args[0]) else torch.device("cpu"), args[0].dtype, False
        else:
            device, dtype, lazy, _ = torch._C._nn._parse_to(*args, **kwargs)
        there = self.is_on(tensor)
        to_there = there if device is None else device.type == "mps"
        moved = tensor if dtype in (None, tensor.dtype) else tensor.type(dtype)
        if to_there != there:
            moved = torch.empty_like(moved) if lazy else moved.clone()
        return self.put(moved) if to_there and not self.is_on(moved) else moved
