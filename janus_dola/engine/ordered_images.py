"""From jobs to images in order: codes by the engine, pixels beside it."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from PIL import Image

from janus_dola.arguments import MAX_SEED
from janus_dola.engine.engine import Engine
from janus_dola.engine.jobs import Job, JobQueue
from janus_dola.engine.pixels import start_pixels
from janus_dola.engine.plan import Plan
from janus_dola.engine.progress import Callback, Progress
from janus_dola.engine.slots import Codes
from janus_dola.images.outputs import DrawnImage, NonFiniteError
from janus_dola.images.recipe import Recipe
from janus_dola.kernels.types import SamplingParams
from janus_dola.models.contexts import undisturbed
from janus_dola.models.model import ImageModel, PromptRows

MaybeImage = tuple[Job, DrawnImage | None]  # None for an image that is not finite


def jobs_of(
    prompts: Iterable[str],
    rows_of_prompt: Callable[[str], PromptRows],
    parallel_size: int,
    seeds: Sequence[int],
    params: SamplingParams,
) -> Iterator[Job]:
    """Makes `parallel_size` jobs per prompt; prompts are read as jobs are needed.

    A prompt that cannot be drawn, or has no seed left, is a ValueError when its turn comes.
    """
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompts must be strings, got {prompt!r}")
        rows = rows_of_prompt(prompt)
        numbers = range(index * parallel_size, (index + 1) * parallel_size)
        try:
            own = [seeds[number] for number in numbers]
        except IndexError:
            raise ValueError(f"seed must leave room for prompt {index} up to {MAX_SEED}, got {seeds[0]}") from None
        for k, (number, seed) in enumerate(zip(numbers, own, strict=True)):
            yield Job(number, index, k, rows, seed, params, prompt)


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

    The jobs' indices count up from 0; the recipe holds for all images, but for prompt and seed. Where not one image fits
    or, with the sampler "multinomial", not all together, it raises torch.OutOfMemoryError.
    """
    queue, slots = JobQueue(jobs), recipe.slots or 1
    with Progress(progress, callback) as bar:
        while True:
            try:
                for image in _in_order(
                    engine.draw(queue, plan, recipe.window, max_images, bar, generator, slots),
                    queue.out,
                    engine.image_model,
                    plan,
                    recipe,
                ):
                    queue.let_go()
                    yield image
                queue.raise_error()
                return
            except torch.OutOfMemoryError:
                pass
            # Outside the except clause nothing holds on to the images' memory.
            if slots > queue.together:
                message = f"memory has no room for {slots} slots, as this image was drawn in: some bits may differ"
                warnings.warn(message, stacklevel=2)
                slots = 1
                engine.release()
            else:
                engine.halve(queue.together, plan.sampler == "multinomial")
            queue.put_back()
            bar.back_to(queue.out * engine.image_model.raster.length)


def _in_order(
    drawn: Iterator[tuple[Job, Codes]], following: int, image_model: ImageModel, plan: Plan, recipe: Recipe
) -> Iterator[MaybeImage]:
    """Yields images from the index `following` on; on a GPU one late: its pixels are decoded while the next is drawn."""
    behind = 1 if image_model.device.type == "cuda" else 0
    done: dict[int, Callable[[], MaybeImage]] = {}  # by index
    for job, codes in drawn:
        pixels = start_pixels(image_model, codes.tokens) if image_model.paints else None
        done[job.index] = partial(_image, job, codes, pixels, image_model, plan, recipe)
        while following in done and following + behind in done:
            yield done.pop(following)()
            following += 1
    for index in sorted(done):
        yield done.pop(index)()


def recipe_of(recipe: Recipe, codes: Codes, image_model: ImageModel, **own: Any) -> Recipe:
    """Returns a recipe with an image's own fields. In 16 bits slots and window decide its last bits."""
    if image_model.dtype.itemsize == 2:
        own |= {"slots": codes.slots, "window": codes.window}
    return replace(recipe, **own)


def _image(
    job: Job,
    codes: Codes,
    pixels: Callable[[], Image.Image | None] | None,
    image_model: ImageModel,
    plan: Plan,
    recipe: Recipe,
) -> MaybeImage:
    """Waits for the pixels, if there are any, and codes of an image that is drawn."""
    with undisturbed():
        codes, picture = codes.cpu(), pixels and pixels()
        finite, passes = bool(codes.finite), int(codes.passes)
    if (pixels is not None and picture is None) or not finite:
        return job, None
    of_codes = codes.tokens, codes.premature_layers, codes.jsd, codes.log_probs
    own_recipe = recipe_of(recipe, codes, image_model, prompt=job.words, seed=job.seed)
    drawn_by_seed = plan.sampler == "gumbel"
    painter_inputs = image_model.painter_inputs(codes.tokens)
    return job, DrawnImage(
        job.prompt, job.k, picture, *of_codes, job.seed, passes, own_recipe, plan.layers, drawn_by_seed, painter_inputs
    )


def all_of(images: Iterable[MaybeImage]) -> list[DrawnImage]:
    """Collects images; raises NonFiniteError, which holds the others, if some are not finite."""
    every = list(images)
    good = [image for _, image in every if image is not None]
    if len(good) < len(every):
        raise NonFiniteError([job.index for job, image in every if image is None], good)
    return good


def each_of(images: Iterable[MaybeImage]) -> Iterator[DrawnImage]:
    """Yields images as they come; raises NonFiniteError at one that is not finite."""
    for job, image in images:
        if image is None:
            raise NonFiniteError([job.index])
        yield image
