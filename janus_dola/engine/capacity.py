"""How many images are drawn together: slots, positions and the window."""

import math

import torch

from janus_dola.arguments import WINDOWS
from janus_dola.engine.decoder import visible_length
from janus_dola.engine.devices import free_memory
from janus_dola.kernels.packed import has_amx
from janus_dola.models.model import ImageModel

# Images: more make a pass longer, not an image cheaper.
_ON_A_CPU = 32
_ON_A_GPU = 64
_SHARE_OF_FREE_MEMORY = 0.7  # the rest is for activations, the image decoder and fragments


def positions(image_model: ImageModel, prompt_tokens: int, window: int) -> int:
    """Counts the positions that an image needs: its prompt, its sequence, and guesses behind it."""
    return visible_length(prompt_tokens + image_model.raster.length + window)


def images_that_fit(image_model: ImageModel, prompt_tokens: int, rows: int = 2, kept_bytes: int = 0) -> int:
    """Returns how many images fit into a GPU's free memory and bytes that will be free, at least 1; on a CPU a constant.

    `rows` are those of an image.
    """
    if image_model.device.type not in ("cuda", "mps"):
        return _ON_A_CPU
    config = image_model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_position = (
        rows * image_model.num_layers * 2 * config.num_key_value_heads * size * image_model.dtype.itemsize
    )
    free = free_memory(image_model.device) + kept_bytes
    fit = int(_SHARE_OF_FREE_MEMORY * free) // (bytes_per_position * positions(image_model, prompt_tokens, WINDOWS[-1]))
    fit = min(fit, _ON_A_GPU)
    return max(images for images in range(1, max(1, fit) + 1) if bucket_of(images) == images)


def bucket_of(images: int) -> int:
    """Rounds images up to a slot count that graphs are captured for: 1, 2, 4 or a multiple of 8."""
    return next((size for size in (1, 2, 4) if images <= size), math.ceil(images / 8) * 8)


def window_of(rows: int, image_model: ImageModel) -> int:
    """Returns the window that "auto" stands for: as many codes as a pass takes without growing much longer.

    A pass has `rows` rows, those of all slots, for each code of its window. Measured on a CPU (bench/findings.md): up to 32
    rows a small model is bound by calls; a large one is bound by reading its weights up to 8 rows, up to 4 if they are
    packed. In bfloat16, where the processor has tiles for it, these are 64 rows, and 32 with windows up to 8. For a GPU it
    is a forecast: a pass of 64 rows takes hardly longer than one of 8.
    """
    if image_model.device.type == "cuda":
        most, longest = 64, 16
    else:
        small = image_model.device.type != "cpu" or image_model.head.hidden_size <= 512
        in_tiles = image_model.dtype == torch.bfloat16 and has_amx()
        if small:
            most, longest = (64 if in_tiles else 32), 16
        else:
            most, longest = (32 if in_tiles else 4 if image_model.is_packed else 8), 8
    return next(window for window in WINDOWS[::-1] if window == 1 or window <= min(longest, most / rows))
