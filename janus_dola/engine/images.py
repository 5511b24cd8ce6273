"""From jobs to images in order: codes by the engine, pixels beside it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from tqdm.auto import tqdm

from janus_dola.arguments import MAX_SEED
from janus_dola.engine.engine import Engine
from janus_dola.engine.jobs import Job, JobQueue
from janus_dola.engine.pixels import start_pixels
from janus_dola.engine.plan import Plan
from janus_dola.engine.progress import Callback, Progress
from janus_dola.engine.slots import Codes
from janus_dola.images.recipe import Recipe
from janus_dola.kernels.types import SamplingParams
from janus_dola.models.model import PromptRows
from janus_dola.outputs import DrawnImage, NonFiniteError

MaybeImage = tuple[Job, DrawnImage | None]  # None for an image that is not finite


def jobs_of(
    prompts: Iterable[str],
    rows_of_prompt: Callable[[str], PromptRows],
    parallel_size: int,
    seeds: Sequence[int],
    params: SamplingParams,
) -> Iterator[Job]:
    """Makes `parallel_size` jobs per prompt; prompts are read as jobs are needed.

    Raises:
        ValueError: the next prompt cannot be drawn, or there is no seed left for it.
    """
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompts must be strings, got {prompt!r}")
        rows = rows_of_prompt(prompt)
        if len(seeds) < (index + 1) * parallel_size:
            raise ValueError(f"seed must leave room for prompt {index} below {MAX_SEED}, got {seeds[0]}")
        for k in range(parallel_size):
            number = index * parallel_size + k
            yield Job(number, index, k, rows, seeds[number], params, prompt)


def draw_images(
    engine: Engine,
    jobs: Iterable[Job],
    plan: Plan,
    recipe: Recipe,
    max_images: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    callback: Callback | None = None,
) -> Iterator[MaybeImage]:
    """Draws images and yields them in order; where memory runs out, half as many at once, from the first that is missing.

    Args:
        jobs: their indices count up.
        recipe: holds for all images, but for prompt and seed.
        max_images, generator: as for `Engine.draw`.
        progress: shows a bar with tokens per second.
    Raises:
        torch.OutOfMemoryError: not one image fits or, with the sampler "multinomial", not all together.
    """
    queue = JobQueue(jobs)
    with Progress(progress, callback) as bar:
        while True:
            try:
                for image in _in_order(engine, queue, plan, recipe, max_images, generator, bar):
                    queue.let_go()
                    yield image
                return
            except torch.OutOfMemoryError:
                pass
            # Outside the except clause nothing holds on to the images' memory.
            engine.halve(queue.together, plan.sampler == "multinomial")
            queue.put_back()
            bar.back_to(queue.out * engine.image_model.raster.length)


def _in_order(
    engine: Engine,
    queue: JobQueue,
    plan: Plan,
    recipe: Recipe,
    max_images: int | None,
    generator: torch.Generator | None,
    bar: tqdm,
) -> Iterator[MaybeImage]:
    """Draws images and yields them in order; on a GPU one late, so that its pixels are decoded while the next is drawn."""
    first = queue.peek()
    following = 0 if first is None else first.index
    behind = 1 if engine.image_model.device.type == "cuda" else 0
    done: dict[int, _Done] = {}  # by index
    for job, codes in engine.draw(queue, plan, recipe.window, max_images, bar, generator):
        done[job.index] = _Done(job, codes, start_pixels(engine.image_model, codes.tokens))
        while following in done and following + behind in done:
            yield done.pop(following).image(plan, recipe)
            following += 1
    for index in sorted(done):
        yield done.pop(index).image(plan, recipe)


@dataclass(frozen=True)
class _Done:
    """An image whose codes are drawn and whose pixels are being decoded."""

    job: Job
    codes: Codes  # on the device
    pixels: Callable[[], Image.Image | None]  # waits for them

    def image(self, plan: Plan, recipe: Recipe) -> MaybeImage:
        """Waits for the pixels."""
        job, codes, pixels = self.job, self.codes.cpu(), self.pixels()
        if pixels is None or not codes.finite:
            return job, None
        return job, DrawnImage(
            job.prompt,
            job.k,
            pixels,
            codes.tokens,
            codes.premature_layers,
            codes.jsd,
            job.seed,
            int(codes.passes),
            replace(recipe, prompt=job.words, seed=job.seed),
            plan.layers,
            plan.sampler == "gumbel",
        )


def all_of(images: Iterable[MaybeImage]) -> list[DrawnImage]:
    """Collects images.

    Raises:
        NonFiniteError: some are not finite.
    """
    every = list(images)
    bad = [job.index for job, image in every if image is None]
    good = [image for _, image in every if image is not None]
    if bad:
        raise NonFiniteError(bad, good)
    return good


def each_of(images: Iterable[MaybeImage]) -> Iterator[DrawnImage]:
    """Yields images as they come.

    Raises:
        NonFiniteError: the next one is not finite.
    """
    for job, image in images:
        if image is None:
            raise NonFiniteError([job.index])
        yield image
