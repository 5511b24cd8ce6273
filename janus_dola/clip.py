"""CLIP score: how near an image and its prompt lie to each other, by a model of open_clip."""

from collections.abc import Sequence

import torch
from PIL import Image

from janus_dola.extras import needed
from bench.evaluation.task import CLIP_SCORE, Judge

_AT_ONCE = 32  # images


def clip_judge(model: str, device: str | torch.device) -> Judge:
    """A judge that gives each image 100 times the cosine of its embedding and its prompt's.

    Args:
        model: architecture and weights as open_clip names them, "ViT-L-14:openai"; weights may be a file.
        device: where it runs.
    Raises:
        ValueError: open_clip is not installed, there is no such model, or its weights cannot be loaded.
    """
    open_clip = needed("open_clip", "clip", "the CLIP score")
    architecture, separator, weights = model.partition(":")
    if not separator or not weights:
        raise ValueError(f'clip must be ARCHITECTURE:WEIGHTS, such as "ViT-L-14:openai", got {model!r}')
    if architecture not in open_clip.list_models():
        raise ValueError(f"clip must name an architecture of open_clip, got {architecture!r}")
    try:
        network, _, preprocess = open_clip.create_model_and_transforms(architecture, pretrained=weights, device=device)
    except Exception as error:  # of the hub, the network, the file or its contents
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"clip weights {weights!r} for {architecture!r} could not be loaded: {reason}") from error
    tokenize = open_clip.get_tokenizer(architecture)
    network.eval()

    @torch.no_grad()
    def judge(images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, list[float]]:
        scores: list[float] = []
        for start in range(0, len(images), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            pixels = torch.stack([preprocess(image) for image in images[part]]).to(device)
            seen = network.encode_image(pixels, normalize=True)
            said = network.encode_text(tokenize(list(prompts[part])).to(device), normalize=True)
            scores += (100 * (seen * said).sum(-1)).tolist()
        return {CLIP_SCORE: scores}

    return judge
