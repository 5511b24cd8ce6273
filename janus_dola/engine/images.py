"""From jobs to images in order: codes by the engine, pictures beside it, and fewer at once where memory runs out."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from PIL import Image

from janus_dola.arguments import MAX_SEED, Window
from janus_dola.engine.capacity import images_that_fit
from janus_dola.engine.engine import Engine
from janus_dola.engine.jobs import Job, longest_of
from janus_dola.engine.kept_jobs import KeptJobs
from janus_dola.engine.pixels import start_pixels
from janus_dola.engine.plan import Plan
from janus_dola.engine.progress import Callback, Progress
from janus_dola.engine.slots import Codes
from janus_dola.images.recipe import Recipe
from janus_dola.models.model import ImageModel, PromptRows
from janus_dola.outputs import DrawnImage, NonFiniteError

MaybeDrawn = tuple[Job, DrawnImage | None]  # None where an image is not finite


def out_of_memory(images: int) -> str:
    """What to do where so many images together do not fit into memory, in one line."""
    fewer = "draw fewer at once (a smaller parallel_size), or " if images > 1 else ""
    return (
        f"out of memory with {images} image(s) at once: {fewer}free memory that others use, take a smaller model or dtype, "
        'or quantize="int8"'
    )


def jobs_of(
    prompts: Iterable[str], rows_of_prompt: Callable[[str], PromptRows], parallel_size: int, seed: int
) -> Iterator[Job]:
    """A job for each image of each prompt; prompts are read as jobs are asked for.

    Raises:
        ValueError: the next prompt cannot be drawn, or there is no seed left for it.
    """
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompts must be strings, got {prompt!r}")
        rows = rows_of_prompt(prompt)
        if seed + (index + 1) * parallel_size > MAX_SEED:
            raise ValueError(f"seed must leave room for prompt {index} below {MAX_SEED}, got {seed}")
        for k in range(parallel_size):
            number = index * parallel_size + k
            yield Job(number, index, k, rows, seed + number, words=prompt)


@dataclass(frozen=True)
class Drawer:
    """Draws the images of one call.

    Attributes:
        recipe: of all images, but for prompt and seed.
        most: images at once; None is as many as fit.
        generator: of the sampler "multinomial"; None is torch's global one.
        strict: a pass that cannot be compiled or captured is an error.
    """

    image_model: ImageModel
    engine: Engine
    plan: Plan
    window: Window
    recipe: Recipe
    most: int | None = None
    generator: torch.Generator | None = None
    strict: bool = False

    def draw_what_fits(
        self, jobs: Iterable[Job], progress: bool = False, callback: Callback | None = None
    ) -> Iterator[MaybeDrawn]:
        """As `draw`; half as many at once from where memory runs out, unless the sampler draws all of them together."""
        kept, most = KeptJobs(jobs), self.most
        with Progress(progress, callback) as bar:
            while True:
                try:
                    for found in replace(self, most=most).draw(kept.to_draw(), bar):
                        kept.drawn += 1
                        yield found
                    return
                except torch.OutOfMemoryError:
                    pass
                # Out of the except clause nothing holds on to the memory of the images.
                begun = kept.begun()
                at_once = len(begun)
                if self.plan.sampler != "multinomial":
                    at_once = min(at_once, most or self._that_fit(longest_of(begun)))
                self.engine.release()
                torch.cuda.empty_cache()
                if self.plan.sampler == "multinomial" or at_once == 1:
                    raise torch.OutOfMemoryError(out_of_memory(at_once))
                most = (at_once + 1) // 2
                bar.back_to(kept.drawn * self.image_model.raster.length)

    def draw(self, jobs: Iterator[Job], bar: Progress | None = None) -> Iterator[MaybeDrawn]:
        """Draws images, and yields them in order.

        On a GPU the picture of an image is waited for when the next image is done.
        """
        coming: deque[_Coming] = deque()
        early: dict[int, _Coming] = {}  # done before images that come before them
        order: deque[int] = deque()

        def in_order() -> Iterator[Job]:
            for job in jobs:
                order.append(job.index)
                yield job

        behind = 1 if self.image_model.device.type == "cuda" else 0

        def limit(longest: int) -> int:
            return self.most or self._that_fit(longest)

        bar = Progress() if bar is None else bar
        drawn = self.engine.draw(in_order(), self.plan, self.window, limit, bar, self.generator, self.strict)
        for job, codes in drawn:
            early[job.index] = _Coming(job, codes, start_pixels(self.image_model, codes.tokens))
            while order and order[0] in early:
                coming.append(early.pop(order.popleft()))
            while len(coming) > behind:
                yield self._image(coming.popleft())
        while coming:
            yield self._image(coming.popleft())

    def _that_fit(self, longest: int) -> int:
        return images_that_fit(self.image_model, longest, self.engine.kept_bytes)

    def _image(self, coming: "_Coming") -> MaybeDrawn:
        """Waits for it."""
        job, codes, picture = coming.job, coming.codes.cpu(), coming.picture()
        if picture is None or not codes.finite:
            return job, None
        return job, DrawnImage(
            job.prompt,
            job.k,
            picture,
            codes.tokens,
            codes.premature_layers,
            codes.jsd,
            job.seed,
            int(codes.passes),
            replace(self.recipe, prompt=job.words, seed=job.seed),
            self.plan.layers,
            self.plan.sampler == "gumbel",
        )


@dataclass(frozen=True)
class _Coming:
    """An image whose codes are drawn and whose picture is being decoded."""

    job: Job
    codes: Codes  # on the device
    picture: Callable[[], Image.Image | None]  # waits for it


def all_of(drawn: Iterable[MaybeDrawn]) -> list[DrawnImage]:
    """The images.

    Raises:
        NonFiniteError: not all of them are finite.
    """
    found = list(drawn)
    bad = [job.index for job, image in found if image is None]
    good = [image for _, image in found if image is not None]
    if bad:
        raise NonFiniteError(bad, good)
    return good


def each_of(drawn: Iterable[MaybeDrawn]) -> Iterator[DrawnImage]:
    """The images.

    Raises:
        NonFiniteError: the next one is not finite.
    """
    for job, image in drawn:
        if image is None:
            raise NonFiniteError([job.index])
        yield image
