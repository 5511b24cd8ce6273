"""Makes the models that steps and whole images are timed with, and keeps one at a time."""

import gc

import torch

from bench.speed.widened import REAL_SIDE, widened
from janus_dola import DoLaConfig, JanusDoLa

DOLA = {"baseline": None, "DoLa": DoLaConfig()}
FEW_BLOCKS = "1B, 8 blocks"
MODELS = {
    "mini": lambda device, dtype: JanusDoLa.from_pretrained("mini", device, dtype),
    FEW_BLOCKS: lambda device, dtype: widened("1B", 8, device=device, dtype=dtype),
    "1B": lambda device, dtype: widened("1B", None, REAL_SIDE, device, dtype),
    "7B": lambda device, dtype: widened("7B", None, REAL_SIDE, device, dtype),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_loaded: dict[tuple[str, str], JanusDoLa] = {}


def model(name: str, device: str, dtype: str) -> JanusDoLa:
    """Returns one of `MODELS`. Those of real sizes are the mini model, widened; float16 on a CPU is packed."""
    if (name, dtype) not in _loaded:
        _loaded.clear()
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        _loaded[name, dtype] = load(name, device, dtype)
    return _loaded[name, dtype]


def load(name: str, device: str, dtype: str) -> JanusDoLa:
    """Makes the same anew."""
    return MODELS[name](device, DTYPES[dtype])
