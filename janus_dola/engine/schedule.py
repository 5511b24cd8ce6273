"""Images to draw, and how many of them together: slots, positions and the window."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from janus_dola.checks import WINDOWS
from janus_dola.devices import free_memory
from janus_dola.engine.decode import visible_length
from janus_dola.kernels.types import Decoding
from janus_dola.models.parts import JanusParts, PromptRows

# Images: more make a pass longer, not an image cheaper.
_ON_A_CPU = 32
_ON_A_GPU = 64
_SHARE_OF_FREE_MEMORY = 0.7  # the rest is for activations, the image decoder and fragments


@dataclass(frozen=True)
class Job:
    """One image to draw."""

    index: int  # over all prompts
    prompt: int  # index of its prompt
    k: int  # which of the prompt's images
    rows: PromptRows
    seed: int
    decoding: Decoding | None = None  # the plan's
    words: str = ""  # of the prompt, for its recipe


class Queue:
    """Jobs in order, read as they are needed. An error that reading one raises comes once the jobs before it are done."""

    def __init__(self, jobs: Iterator[Job]) -> None:
        self._jobs = jobs
        self._next: Job | None = None
        self._error: ValueError | None = None

    def peek(self) -> Job | None:
        """The next job; None where there is none, or only an error."""
        if self._next is None and self._error is None:
            try:
                self._next = next(self._jobs, None)
            except ValueError as error:
                self._error = error
        return self._next

    def take_if(self, fits: Callable[[Job], bool]) -> Job | None:
        """The next job, if there is one and it fits."""
        job = self.peek()
        if job is None or not fits(job):
            return None
        self._next = None
        return job

    def take_together(self, limit: Callable[[int], int]) -> list[Job]:
        """The next jobs, as many as may go together when the longest prompt among them has so many tokens; at least one."""
        jobs: list[Job] = []
        while job := self.take_if(lambda job: not jobs or len(jobs) < limit(longest_of((*jobs, job)))):
            jobs.append(job)
        return jobs

    def raise_error(self) -> None:
        """Raises what reading the next job raised, if it did."""
        if self._error is not None:
            raise self._error


def longest_of(jobs: Iterable[Job]) -> int:
    """Tokens of the longest row of a prompt."""
    return max(len(row) for job in jobs for row in job.rows)


def positions(parts: JanusParts, prompt_tokens: int, window: int) -> int:
    """How many an image needs: its prompt, its sequence, and guesses behind it."""
    return visible_length(prompt_tokens + parts.raster.length + window)


def images_that_fit(parts: JanusParts, prompt_tokens: int, kept_bytes: int = 0) -> int:
    """How many images to draw at once: what the GPU's free memory holds of keys and values, at least 1.

    Args:
        prompt_tokens: S, of the longest prompt.
        kept_bytes: memory that is not free, but will be.
    """
    if parts.device.type != "cuda":
        return _ON_A_CPU
    config = parts.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    of_a_position = 2 * parts.num_layers * 2 * config.num_key_value_heads * size * parts.dtype.itemsize
    free = free_memory(parts.device) + kept_bytes
    fit = int(_SHARE_OF_FREE_MEMORY * free) // (of_a_position * positions(parts, prompt_tokens, WINDOWS[-1]))
    fit = min(fit, _ON_A_GPU)
    return max(images for images in range(1, max(1, fit) + 1) if bucket_of(images) == images)


def bucket_of(images: int) -> int:
    """The number of images, at least so many, that a graph is captured for: 1, 2, 4 or a multiple of 8."""
    return next((size for size in (1, 2, 4) if images <= size), math.ceil(images / 8) * 8)


def window_of(slots: int, parts: JanusParts) -> int:
    """The window "auto" for so many images together: as many codes as a pass takes without growing much longer.

    On a CPU measured (bench/findings.md): up to 32 rows, two an image and code, a small model is bound by calls, and a large
    one by reading its weights up to 8, up to 4 where they are packed. On a GPU a forecast: one reading for so many rows.
    """
    small = parts.device.type != "cpu" or parts.head.hidden_size <= 512
    rows = 32 if small else 8 if parts.stored_dtype == parts.dtype else 4
    return next(window for window in (16, 8, 4, 2, 1) if 2 * slots * window <= rows or window == 1)
