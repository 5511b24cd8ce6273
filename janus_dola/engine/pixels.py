"""From codes to pixels: the image decoder, on a GPU beside the drawing of the next images."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from janus_dola.engine.devices import download, stream_for
from janus_dola.models.contexts import undisturbed
from janus_dola.models.model import ImageModel


def start_pixels(image_model: ImageModel, tokens: Tensor) -> Callable[[], Image.Image | None]:
    """Decodes one image's codes [T]; on a GPU in a stream of its own, so that drawing can go on meanwhile.

    The model must have a pixel decoder.

    Images are decoded one at a time: the image decoder needs far more memory than drawing does, and pixels then depend on
    the image's codes alone. Returns a function that waits for the RGB image, or None if pixels are not finite. Pixels in
    [-1, 1] are mapped to 0 .. 255, clipped and cut off as DeepSeek's and transformers' code do.
    """
    with undisturbed(tokens.device):
        if not tokens.is_cuda:
            on_cpu = [part.cpu() for part in _pixels(image_model, tokens)]
            return lambda: _picture(*on_cpu)
        stream = stream_for("pictures", tokens.device)
        stream.wait_stream(torch.cuda.current_stream(tokens.device))
        with torch.cuda.stream(stream):
            pixels, finite = map(download, _pixels(image_model, tokens))
            done = stream.record_event()
        tokens.record_stream(stream)

    def wait() -> Image.Image | None:
        done.synchronize()
        return _picture(pixels, finite)

    return wait


def _pixels(image_model: ImageModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Returns [H, W, 3] bytes, and whether the pixels were finite before rounding."""
    assert image_model.to_pixels is not None
    decoded = image_model.to_pixels(tokens.unsqueeze(0))[0].float()
    bytes_ = ((decoded + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)
    return bytes_.permute(1, 2, 0).contiguous(), decoded.isfinite().all()


def _picture(pixels: Tensor, finite: Tensor) -> Image.Image | None:
    return Image.fromarray(pixels.numpy()) if finite else None
