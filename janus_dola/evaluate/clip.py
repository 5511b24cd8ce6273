"""CLIP score: how near an image and its prompt lie to each other, by a model of open_clip."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from janus_dola.arguments import import_extra
from janus_dola.images.recipe import read_recipe

Scorer = Callable[[Sequence[Image.Image], Sequence[str]], list[float]]
_AT_ONCE = 32  # images
_ENDINGS = {".jpg", ".png", ".webp"}


def scores_of(folder: Path, scorer: Scorer) -> Iterator[tuple[Path, str, float]]:
    """Each image below a folder that carries a recipe, by name: its path, its prompt and its score.

    Raises:
        ValueError: there is none; other pictures, such as layer maps, are passed over.
    """
    images = ((path, prompt) for path in sorted(folder.rglob("*")) if (prompt := _prompt_of(path)) is not None)
    part = list(islice(images, _AT_ONCE))
    if not part:
        raise ValueError(f"folder {folder} must hold images that carry a recipe, as janus-dola writes them, got none")
    while part:
        pictures = []
        for path, _ in part:
            with Image.open(path) as image:
                pictures.append(image.convert("RGB"))
        prompts = [prompt for _, prompt in part]
        for (path, prompt), score in zip(part, scorer(pictures, prompts), strict=True):
            yield path, prompt, score
        part = list(islice(images, _AT_ONCE))


def _prompt_of(path: Path) -> str | None:
    if path.suffix.lower() not in _ENDINGS:
        return None
    try:
        return read_recipe(path).prompt
    except ValueError:
        return None


def clip_scorer(model: str, device: str | torch.device) -> Scorer:
    """Gives each image 100 times the cosine of its embedding and its prompt's.

    Args:
        model: architecture and weights as open_clip names them, "ViT-L-14:openai"; weights may be a file.
        device: where it runs.
    Raises:
        ValueError: open_clip is not installed, there is no such model, or its weights cannot be loaded.
    """
    open_clip = import_extra("open_clip", "clip", "the CLIP score")
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
    def scorer(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(images), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            pixels = torch.stack([preprocess(image) for image in images[part]]).to(device)
            seen = network.encode_image(pixels, normalize=True)
            said = network.encode_text(tokenize(list(prompts[part])).to(device), normalize=True)
            scores += (100 * (seen * said).sum(-1)).tolist()
        return scores

    return scorer
