"""Packs images of all prompts into full batches, as many at a time as memory holds."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from janus_dola.engine.backbone import key_shape, visible_length
from janus_dola.models.parts import JanusParts

# Images: more make a step longer, not an image cheaper.
_ON_A_CPU = 32
_ON_A_GPU = 64
_SHARE_OF_FREE_MEMORY = 0.7  # the rest is for activations, the image decoder and fragments


@dataclass(frozen=True)
class Job:
    """One image to draw."""

    index: int  # over all prompts
    prompt: int  # index of its prompt
    k: int  # which of the prompt's images
    token_ids: list[int]  # of the prompt
    seed: int


def batches(jobs: Iterable[Job], limit: Callable[[int], int]) -> Iterator[list[Job]]:
    """The jobs in order, as many at a time as the limit allows.

    Args:
        jobs: read as they are needed. An error that reading one raises comes after the jobs before it.
        limit: how many jobs may go together when the longest prompt among them has so many tokens.
    """
    jobs, longest = iter(jobs), 0
    batch: list[Job] = []
    while True:
        try:
            job = next(jobs)
        except StopIteration:
            break
        except ValueError:
            if batch:
                yield batch
            raise
        longest = max(longest, len(job.token_ids))
        if batch and len(batch) >= limit(longest):
            yield batch
            batch, longest = [], len(job.token_ids)
        batch.append(job)
    if batch:
        yield batch


def images_that_fit(parts: JanusParts, prompt_tokens: int, kept_bytes: int = 0) -> int:
    """How many images to draw at once: what the GPU's free memory holds of keys and values, at least 1.

    Args:
        prompt_tokens: S, of the longest prompt.
        kept_bytes: memory that is not free, but will be.
    """
    if parts.device.type != "cuda":
        return _ON_A_CPU
    positions = visible_length(prompt_tokens + parts.image_tokens)
    of_an_image = 2 * parts.num_layers * math.prod(key_shape(parts, 2, positions)) * parts.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(parts.device)
    free += torch.cuda.memory_reserved(parts.device) - torch.cuda.memory_allocated(parts.device) + kept_bytes
    fit = min(int(_SHARE_OF_FREE_MEMORY * free) // of_an_image, _ON_A_GPU)
    return max(images for images in range(1, max(1, fit) + 1) if bucket_of(images) == images)


def bucket_of(images: int) -> int:
    """The number of images, at least so many, that a graph is captured for: 1, 2, 4 or a multiple of 8."""
    return next((size for size in (1, 2, 4) if images <= size), -(-images // 8) * 8)
