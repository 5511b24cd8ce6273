"""From codes to pixels: the image decoder, on a GPU beside the drawing of the next images."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from janus_dola.engine.devices import stream_for
from janus_dola.models.model import ImageModel


@torch.no_grad()
def start_pixels(image_model: ImageModel, tokens: Tensor) -> Callable[[], Image.Image | None]:
    """Decodes one image's codes [T]; on a GPU in a stream of its own, so that drawing can go on meanwhile.

    Images are decoded one at a time: the image decoder needs far more memory than drawing does, and pixels then depend on
    the image's codes alone.

    Returns:
        a function that waits for the RGB image, or None if pixels are not finite. Pixels in [-1, 1] are mapped to 0 .. 255,
        clipped and cut off as DeepSeek's and transformers' code do.
    """
    if tokens.device.type != "cuda":
        pixels, finite = _pixels(image_model, tokens)
        return lambda: _picture(pixels, finite)
    stream = stream_for("pictures", tokens.device)
    stream.wait_stream(torch.cuda.current_stream(tokens.device))
    with torch.cuda.stream(stream):
        pixels, finite = (
            torch.empty(each.shape, dtype=each.dtype, pin_memory=True).copy_(each, non_blocking=True)
            for each in _pixels(image_model, tokens)
        )
        done = stream.record_event()
    tokens.record_stream(stream)

    def wait() -> Image.Image | None:
        done.synchronize()
        return _picture(pixels, finite)

    return wait


def to_images(image_model: ImageModel, tokens: Tensor) -> list[Image.Image]:
    """Decodes codes [B, T] into B RGB images, as `start_pixels` does.

    Raises:
        ValueError: pixels are not finite.
    """
    pictures = [picture for wait in [start_pixels(image_model, image) for image in tokens] if (picture := wait())]
    if len(pictures) < len(tokens):
        raise ValueError("tokens must decode to finite pixels, got NaN or infinite ones")
    return pictures


def _pixels(image_model: ImageModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Returns [H, W, 3] bytes, and whether the pixels were finite before rounding."""
    decoded = image_model.to_pixels(tokens.unsqueeze(0))[0].float()
    bytes_ = ((decoded + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)
    return bytes_.permute(1, 2, 0).contiguous(), decoded.isfinite().all()


def _picture(pixels: Tensor, finite: Tensor) -> Image.Image | None:
    return Image.fromarray(pixels.numpy()) if finite else None
