"""How far drawn pictures are from the training pictures, as FID has it, with the mini model's own vision tower.

Frechet distance between two normal distributions (Heusel et al., NeurIPS 2017, arXiv 1706.08500):

    |m - m'|^2 + tr(C + C' - 2 (C C')^1/2)

of features of drawn pictures and of pictures that Pillow draws for the same captions, rebuilt by the image tokenizer.
"""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.mini.pictures import draw, parse_caption
from bench.train.image_tokenizer import encode
from janus_dola.pipeline import JanusDoLa
from janus_dola.text.vision_pixels import pixels

_PICTURES = 40  # of each caption, to compare with


def features(pipe: JanusDoLa, images: Sequence[Image.Image]) -> Tensor:
    """Returns the vision tower's features, averaged over each picture: [n, D] float64."""
    vision = pipe.image_model.vision
    assert vision is not None
    with torch.inference_mode():
        seen = vision.see(pixels(images, pipe.image_model.image_size[0], pipe.tokenizer))
    return seen.mean(1).double()


def distance_from_pictures(pipe: JanusDoLa, captions: Sequence[str], drawn: Tensor, work: Path) -> float:
    """Returns the Frechet distance between features [n, D] and those of training pictures, which are kept in `work`."""
    digest = hashlib.sha256("\n".join(captions).encode()).hexdigest()[:16]
    file = work / f"pictures-{digest}.npz"
    if not file.exists():
        of_pictures = _of_pictures(pipe, captions).numpy()
        work.mkdir(parents=True, exist_ok=True)
        np.savez(file, mean=of_pictures.mean(0), covariance=np.cov(of_pictures.T))
    known = np.load(file)
    array = drawn.numpy()
    return frechet(array.mean(0), np.cov(array.T), known["mean"], known["covariance"])


def frechet(mean: np.ndarray, covariance: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray) -> float:
    """Returns the Frechet distance between two normal distributions of D numbers."""
    # tr (C C')^1/2 by the eigenvalues of C C', which are those of a positive semidefinite matrix
    roots = np.sqrt(np.linalg.eigvals(covariance @ covariance2).real.clip(0)).sum()
    return float(np.square(mean - mean2).sum() + np.trace(covariance) + np.trace(covariance2) - 2 * roots)


def _of_pictures(pipe: JanusDoLa, captions: Sequence[str]) -> Tensor:
    rng, seen, to_pixels = random.Random(3), [], pipe.image_model.to_pixels
    assert to_pixels is not None
    for text in captions:
        drawn = np.stack([np.asarray(draw(parse_caption(text), rng)) for _ in range(_PICTURES)])
        batch = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1
        codes = encode(pipe.model.model.vqmodel, batch)
        with torch.inference_mode():
            rebuilt = torch.cat([to_pixels(each) for each in codes.split(8)])
        bytes_ = ((rebuilt + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        seen.append(features(pipe, [Image.fromarray(each) for each in bytes_]))
    return torch.cat(seen)
