"""What must be after a call as it was before: the model that was handed over, torch's switches, and the process."""

import locale
import logging
import os
import random
import signal
import sys
import warnings

import numpy as np
import torch
import transformers
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

HOOKS = [name for name, value in vars(nn.Module()).items() if name.endswith("hooks") and isinstance(value, dict)]
PROCESS_WIDE = {
    "default dtype": torch.get_default_dtype,
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "deterministic, warn only": torch.is_deterministic_algorithms_warn_only_enabled,
    "fill uninitialized": lambda: torch.utils.deterministic.fill_uninitialized_memory,
    "precision of products": torch.get_float32_matmul_precision,
    "threads": lambda: (torch.get_num_threads(), torch.get_num_interop_threads()),
    "anomalies": lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
    "cudnn": lambda: [getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")],
    "attention": lambda: [
        getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in ("flash", "mem_efficient", "math", "cudnn")
    ],
    "random": random.getstate,
    "numpy": lambda: str(np.random.get_state()),
    "environment": lambda: dict(os.environ),
    "warnings": lambda: list(warnings.filters),
    "logging": lambda: (transformers.utils.logging.get_verbosity(), logging.root.level, list(logging.root.handlers)),
    "signals": lambda: [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)],
    "locale": lambda: locale.setlocale(locale.LC_ALL),
    "folder": os.getcwd,
    "python": lambda: (sys.getrecursionlimit(), sys.excepthook, list(sys.path), Image.MAX_IMAGE_PIXELS),
}
OF_THE_THREAD = {
    "gradients": torch.is_grad_enabled,
    "inference mode": torch.is_inference_mode_enabled,
    "autocast": lambda: [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")],
    "autocast's cache": torch.is_autocast_cache_enabled,
    "default device": torch.get_default_device,
    "modes": lambda: (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
}


def switches() -> dict[str, object]:
    """Torch's switches and the process' state, but for torch's generator."""
    return {name: read() for name, read in (PROCESS_WIDE | OF_THE_THREAD).items()}


def fingerprint(model: nn.Module) -> dict[str, object]:
    """All of it; two are equal if nothing was changed."""
    seen: dict[str, object] = {"fake tensors": torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)}
    seen |= switches()
    with unset_fake_temporarily():
        seen["torch's generator"] = bytes(torch.get_rng_state().numpy())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            seen[f"tensor {name}"] = (
                id(tensor), tensor.data_ptr(), tensor.untyped_storage().data_ptr(), tensor._version, tensor.requires_grad,
                tensor.dtype, tensor.device, tensor.shape, tensor.stride(), id(tensor.grad), tensor.is_inference(),
            )  # fmt: skip
    for name, module in model.named_modules():
        hooks = {kind: dict(getattr(module, kind)) for kind in HOOKS}
        seen[f"module {name}"] = id(module), type(module), module.training, list(vars(module)), hooks
        seen[f"forward of {name}"] = vars(module).get("forward"), type(module).forward
    seen["config"] = model.config.to_dict(), model.generation_config.to_dict()
    return seen


def changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Names what differs."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]
