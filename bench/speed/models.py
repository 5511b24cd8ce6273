"""The models that steps and whole images are timed with: one at a time, kept until another is asked for."""

import gc

import torch

from bench.speed import shapes
from janus_dola import DoLaConfig, JanusDoLa

DOLA = {"baseline": None, "DoLa": DoLaConfig()}
_FOUR_BLOCKS = DoLaConfig(candidate_layers=[1, 2, 3])
_MODELS = {
    "mini": lambda device, dtype: JanusDoLa.from_pretrained("mini", device, dtype),
    "1B, 4 blocks": lambda device, dtype: shapes.random_janus(
        "1B", blocks=4, codes_a_side=5, device=device, dtype=dtype
    ),
    "1B": lambda device, dtype: shapes.random_janus("1B", device=device, dtype=dtype),
    "7B": lambda device, dtype: shapes.random_janus("7B", device=device, dtype=dtype),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_loaded: dict[tuple[str, str], JanusDoLa] = {}


def model(name: str, device: str, dtype: str) -> JanusDoLa:
    """One of `_MODELS`. Those of real shapes have random weights; float16 on a CPU is packed."""
    if (name, dtype) not in _loaded:
        _loaded.clear()
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        _loaded[name, dtype] = load(name, device, dtype)
    return _loaded[name, dtype]


def load(name: str, device: str, dtype: str) -> JanusDoLa:
    """The same, made anew."""
    return _MODELS[name](device, DTYPES[dtype])


def dola_of(name: str, way: str) -> DoLaConfig | None:
    """None, or DoLa with the default candidates; with 4 blocks there are none, and all are taken."""
    return _FOUR_BLOCKS if (name, way) == ("1B, 4 blocks", "DoLa") else DOLA[way]
