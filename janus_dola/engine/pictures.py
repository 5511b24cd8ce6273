"""From codes to pictures: the image decoder, in chunks of bounded memory, beside the drawing of the next batch on a GPU."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from janus_dola.models.parts import JanusParts

_DECODED_AT_ONCE = 8  # images: the image decoder needs far more memory for one than drawing it does


@torch.no_grad()
def start_decoding(parts: JanusParts, tokens: Tensor) -> Callable[[], list[Image.Image]]:
    """Decodes codes [B, T]; on a GPU in a stream of its own, so that drawing can go on meanwhile.

    Returns:
        a function that waits for the B RGB images, [-1, 1] mapped to 0 .. 255 and clipped.
    """
    if tokens.device.type != "cuda":
        # One at a time is no slower on a CPU, and pixels do not depend on the batch to the last bit.
        pixels = [_pixels(parts, image).cpu() for image in tokens.split(1)]
        return lambda: _pictures(pixels)
    stream = torch.cuda.Stream(tokens.device)
    stream.wait_stream(torch.cuda.current_stream(tokens.device))
    pixels = []
    with torch.cuda.stream(stream):
        for chunk in tokens.split(_DECODED_AT_ONCE):
            found = _pixels(parts, chunk)
            pixels.append(torch.empty(found.shape, dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True))
        done = stream.record_event()
    tokens.record_stream(stream)

    def wait() -> list[Image.Image]:
        done.synchronize()
        return _pictures(pixels)

    return wait


def to_images(parts: JanusParts, tokens: Tensor) -> list[Image.Image]:
    """Decodes codes [B, T] into B RGB images, [-1, 1] mapped to 0 .. 255 and clipped."""
    return start_decoding(parts, tokens)()


def _pixels(parts: JanusParts, tokens: Tensor) -> Tensor:
    """[B, H, W, 3] bytes."""
    pixels = ((parts.decode_codes(tokens).float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()


def _pictures(pixels: list[Tensor]) -> list[Image.Image]:
    return [Image.fromarray(image.numpy()) for chunk in pixels for image in chunk]
