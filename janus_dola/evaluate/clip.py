"""Computes CLIP scores: how near an image and its prompt lie to each other, by an open_clip model."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from janus_dola.arguments import import_extra, one_line
from janus_dola.images.recipe import read_recipe
from janus_dola.models.contexts import undisturbed

Scorer = Callable[[Sequence[Image.Image], Sequence[str]], list[float]]
_BATCH_SIZE = 32  # images
_ENDINGS = {".jpg", ".png", ".webp"}


def scores_of(folder: Path, scorer: Scorer) -> Iterator[tuple[Path, str, float]]:
    """Yields path, prompt and score for each image below a folder that carries a recipe, by name; none is a ValueError."""
    images = ((path, prompt) for path in sorted(folder.rglob("*")) if (prompt := _prompt(path)) is not None)
    part = list(islice(images, _BATCH_SIZE))
    if not part:
        raise ValueError(f"folder {folder} must hold images that carry a recipe, as janus-dola writes them, got none")
    while part:
        paths, prompts = zip(*part, strict=True)
        pictures = []
        for path in paths:
            with Image.open(path) as image:
                pictures.append(image.convert("RGB"))
        yield from zip(paths, prompts, scorer(pictures, prompts), strict=True)
        part = list(islice(images, _BATCH_SIZE))


def _prompt(path: Path) -> str | None:
    """Returns the prompt in an image's recipe; None for other files, such as layer maps."""
    try:
        return read_recipe(path).prompt if path.suffix.lower() in _ENDINGS else None
    except ValueError:
        return None


def clip_scorer(model: str, device: str | torch.device) -> Scorer:
    """Returns a scorer: 100 times the cosine between the embeddings of an image and its prompt.

    Args:
        model: architecture and weights as open_clip names them, such as "ViT-L-14:openai"; weights may be a file.
    Raises:
        ValueError: open_clip is not installed, there is no such model, or its weights cannot be loaded.
    """
    open_clip = import_extra("open_clip", "clip", "the CLIP score")
    architecture, _, weights = model.partition(":")
    if not weights:
        raise ValueError(f'clip must be ARCHITECTURE:WEIGHTS, such as "ViT-L-14:openai", got {model!r}')
    if architecture not in open_clip.list_models():
        raise ValueError(f"clip must name an architecture of open_clip, got {architecture!r}")
    try:
        with undisturbed(torch.device(device)):
            network, _, preprocess = open_clip.create_model_and_transforms(
                architecture, pretrained=weights, device=device
            )
    except Exception as error:  # whatever hub, network or file raise
        reason = one_line(error)
        raise ValueError(f"clip weights {weights!r} for {architecture!r} could not be loaded: {reason}") from error
    tokenize = open_clip.get_tokenizer(architecture)
    network.eval()

    @undisturbed(torch.device(device))
    def scorer(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(images), _BATCH_SIZE):
            part = slice(start, start + _BATCH_SIZE)
            pixels = torch.stack([preprocess(image) for image in images[part]]).to(device)
            image_embeddings = network.encode_image(pixels, normalize=True)
            text_embeddings = network.encode_text(tokenize(list(prompts[part])).to(device), normalize=True)
            scores += (100 * (image_embeddings * text_embeddings).sum(-1)).tolist()
        return scores

    return scorer
