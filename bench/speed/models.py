"""Makes the models that steps and whole images are timed with, and keeps one at a time."""

import gc

import torch

from bench.speed import shapes
from janus_dola import DoLaConfig, JanusDoLa

DOLA = {"baseline": None, "DoLa": DoLaConfig()}
FEW_BLOCKS = "1B, 4 blocks"
_ALL_LAYERS = DoLaConfig(candidate_layers=[1, 2, 3])
MODELS = {
    "mini": lambda device, dtype: JanusDoLa.from_pretrained("mini", device, dtype),
    FEW_BLOCKS: lambda device, dtype: shapes.random_janus("1B", blocks=4, codes_a_side=5, device=device, dtype=dtype),
    "1B": lambda device, dtype: shapes.random_janus("1B", device=device, dtype=dtype),
    "7B": lambda device, dtype: shapes.random_janus("7B", device=device, dtype=dtype),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_loaded: dict[tuple[str, str], JanusDoLa] = {}


def model(name: str, device: str, dtype: str) -> JanusDoLa:
    """Returns one of `MODELS`. Those of real shapes have random weights; float16 on a CPU is packed."""
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


def dola_of(name: str, way: str) -> DoLaConfig | None:
    """Returns None, or DoLa with the default candidates; 4 blocks have none, and all layers are taken."""
    return _ALL_LAYERS if (name, way) == (FEW_BLOCKS, "DoLa") else DOLA[way]
