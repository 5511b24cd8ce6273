"""`JanusDoLa`: the public API. Prompts in; images, codes and what DoLa did at each code out."""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from typing_extensions import Unpack

from janus_dola.checks import (
    MAX_PARALLEL_SIZE,
    MAX_SEED,
    Window,
    check_window,
    integer,
    iterable_of_strings,
    strings,
)
from janus_dola.engine.engine import Engine
from janus_dola.engine.plan import Plan, Sampler, plan
from janus_dola.engine.schedule import Job, images_that_fit, longest_of
from janus_dola.engine.slots import Codes
from janus_dola.kept_jobs import KeptJobs
from janus_dola.kernels.types import Scores
from janus_dola.models import JanusParts, find_parts, load
from janus_dola.models.pack import pack_for_cpu
from janus_dola.models.quantize import Quantization, check_quantization, quantize_blocks
from janus_dola.pictures import start_decoding
from janus_dola.progress import Callback, Progress
from janus_dola.prompt import prompt_ids, rows_of
from janus_dola.settings import Changes, DrawSettings, with_changes
from janus_dola.teacher_forcing import log_probabilities, scores_of_codes


class NonFiniteError(RuntimeError):
    """Hidden states, logits or pixels of some images were NaN or infinite.

    Attributes:
        images: their indices, over all prompts.
        drawn: the other images, where all of them were asked for at once.
    """

    def __init__(self, images: list[int], drawn: Sequence["DrawnImage"] = ()) -> None:
        super().__init__(
            f"hidden states, logits or pixels became NaN or infinite for image(s) {images}, counted over all prompts. "
            "float16 overflows in some Janus checkpoints: try dtype bfloat16 or float32"
        )
        self.images, self.drawn = images, list(drawn)


def out_of_memory(images: int) -> str:
    """What to do where so many images together do not fit into memory, in one line."""
    fewer = "draw fewer at once (a smaller parallel_size), or " if images > 1 else ""
    return (
        f"out of memory with {images} image(s) at once: {fewer}free memory that others use, take a smaller model or dtype, "
        'or quantize="int8"'
    )


@dataclass(frozen=True)
class DrawnImage:
    """One image of `JanusDoLa.stream`. T image tokens; tensors are on the CPU."""

    prompt: int  # index of its prompt
    k: int  # which of the prompt's images
    image: Image.Image  # RGB
    tokens: Tensor  # [T] int64, the codes in raster order
    premature_layers: Tensor  # [T] int64, as in GenerationOutput
    jsd: Tensor  # [T] float32
    seed: int
    passes: int  # of the model, after that of the prompt


@dataclass(frozen=True)
class GenerationOutput:
    """What `JanusDoLa.generate` returns. Letters: P prompts, K images per prompt, T image tokens; tensors are on the CPU."""

    images: list[list[Image.Image]]  # [P][K] RGB
    tokens: Tensor  # [P, K, T] int64, the codes in raster order
    premature_layers: (
        Tensor  # [P, K, T] int64, the layer contrasted with; N (the final one) where there was no contrast
    )
    jsd: Tensor  # [P, K, T] float32, that layer's Jensen-Shannon divergence from the final one, in [0, ln 2] nats
    seeds: Tensor  # [P, K] int64: alone with its seed an image comes out the same; -1 for torch's global generator
    passes: Tensor  # [P, K] int64: of the model for each image, after that of the prompt; T - 1 with one code a pass


class JanusDoLa:
    """A Janus model that draws images with DoLa decoding, or without.

    Args:
        model: transformers' `JanusForConditionalGeneration` or DeepSeek's `MultiModalityCausalLM`; used as it is, on the
            device and in the dtype it has.
        tokenizer: the tokenizer that belongs to it, or the processor that holds it.
    Raises:
        ValueError: the model is of neither family, or the tokenizer lacks the tokens of Janus.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> None:
        self.model = model
        self.tokenizer = tokenizer.tokenizer if isinstance(tokenizer, ProcessorMixin) else tokenizer
        self.parts: JanusParts = find_parts(model)
        self._special = self.parts.special_tokens(self.tokenizer)
        self._engine = Engine(self.parts, self._special)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        quantize: Quantization | None = None,
    ) -> "JanusDoLa":
        """Loads a checkpoint.

        Args:
            model: "mini" (a small Janus that ships with this package), a folder, or a repository on the Hugging Face hub;
                in transformers' format or in DeepSeek's own.
            device: None is a GPU where there is one, else the CPU.
            dtype: None is float32 on a CPU and bfloat16 elsewhere. "float16" on a CPU (x86) packs the weights of the
                language model and the image head in 16 bits and computes in float32: fastest where images are few.
            revision: of the repository.
            quantize: "int8" or "fp8" stores the weights of the blocks in 8 bits (needs the extra `quantize`): half the
                memory of 16 bits, and some tokens come out differently. On a GPU it is slow but with the engine "compile".
        Raises:
            FileNotFoundError: no checkpoint is there.
            ValueError: the checkpoint is not a Janus model, the dtype or the quantisation is unknown.
            ImportError: torchao is needed and not installed.
        """
        check_quantization(quantize)
        loaded, own_tokenizer = load(model, device, dtype, revision)
        if quantize is None:
            pack_for_cpu(loaded)
        pipe = cls(loaded, own_tokenizer)
        if quantize is not None:
            quantize_blocks(pipe.parts, quantize)
        return pipe

    def generate(
        self,
        prompts: str | Sequence[str],
        parallel_size: int = 1,
        settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
        *,
        seed: int | Sequence[int] | None = 0,
        sampler: Sampler = "gumbel",
        backend: str = "auto",
        engine: str = "auto",
        window: Window = "auto",
        strict: bool = False,
        progress: bool = False,
        callback: Callback | None = None,
        **changes: Unpack[Changes],
    ) -> GenerationOutput:
        """Draws `parallel_size` images for each prompt.

        Args:
            prompts: one or several; they may differ in length.
            parallel_size: K, images per prompt.
            settings: how codes are chosen: guidance, temperature, DoLa, a negative prompt.
            seed: image k of prompt i has the seed `seed + i * parallel_size + k`. With the sampler "gumbel" an image depends
                on its own seed only, not on its batch. None picks a random one; several are one for each image, prompt by
                prompt. The sampler "multinomial" seeds one torch generator for the whole batch with `seed`; None is torch's
                global one, as upstream loops use.
            sampler: "gumbel" (counter-based noise) or "multinomial" (torch.multinomial, to match other loops draw for draw).
            backend: of the early-exit stage: "auto", "reference", "torch" or "triton" (fused kernels, on a GPU).
            engine: how a pass is run: "auto", "graph" (one CUDA graph replayed for each pass), "compile" (torch.compile of
                the blocks, under the same graph on a GPU) or "eager". "auto" is "graph" on a CUDA device, else "eager".
            window: codes fed a pass for each image: 1, 2, 4, 8, 16, 32, or "auto" for what is fastest. The images are the
                same, in fewer passes; see `janus_dola.engine.slots`. The sampler "multinomial" has 1 only.
            strict: a pass that cannot be compiled or captured is an error; otherwise it runs eagerly, after a warning.
            progress: shows a bar with tokens per second and the time left.
            callback: called with (codes decided, codes of the images begun) whenever some are decided, in the thread that
                draws. What it raises ends drawing and comes out here, so that another thread can cancel through it.
            changes: fields of `DrawSettings` by their names, in place of those of `settings`:
                `generate(prompts, dola=None, temperature=0.7)`.
        Raises:
            ValueError: an argument is out of range; nothing has been drawn then.
            NonFiniteError: hidden states, logits or pixels became NaN or infinite.
            RuntimeError: with `strict`, the pass cannot be compiled or captured.
            torch.OutOfMemoryError: not one image fits into memory or, with the sampler "multinomial", not all at once.
        """
        prompts, settings = strings(prompts), with_changes(settings, changes)
        planned = plan(self.parts, settings, sampler, backend, engine)
        window = check_window(window, sampler)
        parallel_size = integer("parallel_size", parallel_size, 1, MAX_PARALLEL_SIZE)
        images = len(prompts) * parallel_size
        if isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
            keys = [integer("seed", each, 0, MAX_SEED) for each in seed]
            if len(keys) != images or sampler == "multinomial":
                raise ValueError(
                    f"seed must be one int, or with the sampler 'gumbel' one for each of {images} images, got {len(keys)}"
                )
            base = 0
        else:
            base = random.getrandbits(62) if seed is None else integer("seed", seed, 0, MAX_SEED - images, "None or ")
            keys = list(range(base, base + images))
        jobs = [replace(job, seed=keys[job.index]) for job in self._jobs(prompts, parallel_size, 0, settings)]
        most, generator = None, None
        if sampler == "multinomial":  # draws of one generator for all images, so all together
            most = len(jobs)
            generator = None if seed is None else torch.Generator(self.parts.device).manual_seed(base)
        drawn = _all(self._draw_what_fits(jobs, planned, window, most, generator, strict, progress, callback))
        shape = (len(prompts), parallel_size)
        seeds = torch.tensor([image.seed for image in drawn])
        if sampler == "multinomial" and seed is None:
            seeds.fill_(-1)
        return GenerationOutput(
            images=[
                [image.image for image in drawn[i : i + parallel_size]] for i in range(0, len(drawn), parallel_size)
            ],
            tokens=torch.stack([image.tokens for image in drawn]).unflatten(0, shape),
            premature_layers=torch.stack([image.premature_layers for image in drawn]).unflatten(0, shape),
            jsd=torch.stack([image.jsd for image in drawn]).unflatten(0, shape),
            seeds=seeds.unflatten(0, shape),
            passes=torch.tensor([image.passes for image in drawn]).unflatten(0, shape),
        )

    def stream(
        self,
        prompts: str | Iterable[str],
        parallel_size: int = 1,
        settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
        *,
        seed: int = 0,
        backend: str = "auto",
        engine: str = "auto",
        window: Window = "auto",
        strict: bool = False,
        max_images: int | None = None,
        progress: bool = False,
        callback: Callback | None = None,
        **changes: Unpack[Changes],
    ) -> Iterator[DrawnImage]:
        """Draws images of any number of prompts, and yields them in order as they are done.

        An image that is done makes room for the next one at once, while the others go on.

        Args:
            prompts: read as they are needed.
            parallel_size, settings, seed, backend, engine, window, strict, callback, changes: as for `generate` with the
                sampler "gumbel".
            max_images: images drawn at once; None is as many as fit into memory. Where they turn out not to, half as many.
            progress: shows a bar with tokens per second.
        Raises:
            ValueError: a setting is out of range, before anything is drawn; or a prompt is, when its turn comes.
            NonFiniteError: hidden states, logits or pixels became NaN or infinite.
            RuntimeError: with `strict`, the pass cannot be compiled or captured.
            torch.OutOfMemoryError: not one image fits into memory.
        """
        settings = with_changes(settings, changes)
        planned = plan(self.parts, settings, "gumbel", backend, engine)
        window = check_window(window)
        parallel_size = integer("parallel_size", parallel_size, 1, MAX_PARALLEL_SIZE)
        seed = integer("seed", seed, 0, MAX_SEED - parallel_size)
        most = None if max_images is None else integer("max_images", max_images, 1, MAX_PARALLEL_SIZE, "None or ")
        jobs = self._jobs(iterable_of_strings(prompts), parallel_size, seed, settings)
        return _each(self._draw_what_fits(jobs, planned, window, most, None, strict, progress, callback))

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
        *,
        backend: str = "auto",
        engine: str = "auto",
        window: Window = "auto",
        **changes: Unpack[Changes],
    ) -> list[DrawnImage]:
        """Draws one image for each prompt and its seed, all at once.

        Args:
            prompts: at least one; the same one several times gives several images of it.
            seeds: one for each image, 0 .. 2**63 - 1.
            settings, backend, engine, window, changes: as for `generate` with the sampler "gumbel".
        Returns:
            the images in order; `prompt` counts them, and `k` is 0.
        Raises:
            ValueError: an argument is out of range; nothing has been drawn then.
            NonFiniteError: hidden states, logits or pixels became NaN or infinite; its `images` count the prompts given, and
                the others are in its `drawn`.
        """
        prompts = strings(prompts)
        if len(prompts) != len(seeds):
            raise ValueError(f"seeds must be one for each of at least one prompt, got {len(seeds)} for {len(prompts)}")
        keys = [integer("seeds", seed, 0, MAX_SEED) for seed in seeds]
        settings = with_changes(settings, changes)
        planned = plan(self.parts, settings, "gumbel", backend, engine)
        window = check_window(window)
        jobs = [replace(job, seed=keys[job.index]) for job in self._jobs(prompts, 1, 0, settings)]
        return _all(self._draw(iter(jobs), planned, window, len(jobs)))

    def log_probs(
        self,
        prompts: str | Sequence[str],
        tokens: Tensor,
        settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
        **changes: Unpack[Changes],
    ) -> Tensor:
        """The log-probability of each code of images under the distribution that these settings draw it from.

        That is softmax(F / T) on the plausible codes (`janus_dola.kernels.reference`), given prompt and the codes before,
        in one pass over each image. With the settings that `tokens` were drawn with, what a policy gradient needs.

        Args:
            prompts: P, one or several.
            tokens: [P, K, T] int64, K images of each prompt, as `GenerationOutput.tokens`.
            settings, changes: as for `generate`.
        Returns:
            [P, K, T] float32 on the CPU, nats, at most 0; -inf for a code that cannot be drawn.
        Raises:
            ValueError: an argument is out of range.
        """
        prompts, settings = strings(prompts), with_changes(settings, changes)
        if tokens.ndim != 3 or tokens.shape[0] != len(prompts) or tokens.shape[2] != self.parts.image_tokens:
            raise ValueError(
                f"tokens must be of shape [{len(prompts)}, images, {self.parts.image_tokens}], got {list(tokens.shape)}"
            )
        codes = self.parts.head.num_codes
        if tokens.dtype != torch.int64 or not ((tokens >= 0) & (tokens < codes)).all():
            raise ValueError(f"tokens must be int64 in 0 .. {codes - 1}, got {tokens.dtype}, up to {tokens.max()}")
        planned = plan(self.parts, settings)
        negative, weights = self._negative_ids(settings), self._engine.weights.read()
        found = []
        for prompt, of_prompt in zip(prompts, tokens, strict=True):
            rows = rows_of(self._prompt_ids(prompt), negative, self._special)
            for image in of_prompt.unsqueeze(1):  # one at a time: their scores take some 40 MB each
                scores = scores_of_codes(self.parts, weights, [rows], image, planned).scores
                found.append(log_probabilities(scores, image[0].to(scores.device), planned.decoding.temperature).cpu())
        return torch.stack(found).view(tokens.shape).float()

    def scores_by(self, planned: Plan, prompts: Sequence[str], tokens: Tensor) -> Scores:
        """The contrasted distributions [B * T, V] that the codes [B, T] of one image a prompt were drawn from."""
        rows = [rows_of(ids, None, self._special) for ids in map(self._prompt_ids, prompts)]
        return scores_of_codes(self.parts, self._engine.weights.read(), rows, tokens, planned)

    def _draw_what_fits(
        self,
        jobs: Iterable[Job],
        planned: Plan,
        window: Window,
        most: int | None,
        generator: torch.Generator | None,
        strict: bool,
        progress: bool,
        callback: Callback | None,
    ) -> Iterator[tuple[Job, DrawnImage | None]]:
        """As `_draw`; half as many at once from where memory runs out, unless the sampler draws all of them together."""
        kept = KeptJobs(jobs)
        with Progress(progress, callback) as bar:
            while True:
                try:
                    for found in self._draw(kept.to_draw(), planned, window, most, generator, strict, bar):
                        kept.drawn += 1
                        yield found
                    return
                except torch.OutOfMemoryError:
                    pass
                # Out of the except clause nothing holds on to the memory of the images.
                begun = kept.begun()
                at_once = len(begun)
                if planned.sampler != "multinomial":
                    at_once = min(
                        at_once, most or images_that_fit(self.parts, longest_of(begun), self._engine.kept_bytes)
                    )
                self._engine.release()
                torch.cuda.empty_cache()
                if planned.sampler == "multinomial" or at_once == 1:
                    raise torch.OutOfMemoryError(out_of_memory(at_once))
                most = (at_once + 1) // 2
                bar.back_to(kept.drawn * self.parts.image_tokens)

    def check_prompt(self, prompt: str) -> None:
        """Raises ValueError where a prompt is too long for the model."""
        self._prompt_ids(prompt)

    def _jobs(self, prompts: Iterable[str], parallel_size: int, seed: int, settings: DrawSettings) -> Iterator[Job]:
        return self._jobs_beside(self._negative_ids(settings), prompts, parallel_size, seed)

    def _jobs_beside(
        self, negative: list[int] | None, prompts: Iterable[str], parallel_size: int, seed: int
    ) -> Iterator[Job]:
        for index, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise ValueError(f"prompts must be strings, got {prompt!r}")
            token_ids, other = rows_of(self._prompt_ids(prompt), negative, self._special)
            if seed + (index + 1) * parallel_size > MAX_SEED:
                raise ValueError(f"seed must leave room for prompt {index} below {MAX_SEED}, got {seed}")
            for k in range(parallel_size):
                number = index * parallel_size + k
                yield Job(number, index, k, token_ids, seed + number, negative_ids=other)

    def _draw(
        self,
        jobs: Iterator[Job],
        planned: Plan,
        window: Window,
        most: int | None,
        generator: torch.Generator | None = None,
        strict: bool = False,
        bar: Progress | None = None,
    ) -> Iterator[tuple[Job, DrawnImage | None]]:
        """Draws images, `most` at once or as many as fit, and yields them in order; None for one that is not finite.

        On a GPU the picture of an image is waited for when the next image is done.
        """
        coming: deque[_Coming] = deque()
        early: dict[int, _Coming] = {}  # done before images that come before them
        order: deque[int] = deque()

        def in_order() -> Iterator[Job]:
            for job in jobs:
                order.append(job.index)
                yield job

        behind = 1 if self.parts.device.type == "cuda" else 0

        def limit(longest: int) -> int:
            return most or images_that_fit(self.parts, longest, self._engine.kept_bytes)

        bar = Progress() if bar is None else bar
        for job, codes in self._engine.draw(in_order(), planned, window, limit, bar, generator, strict):
            early[job.index] = _Coming(job, codes, start_decoding(self.parts, codes.tokens))
            while order and order[0] in early:
                coming.append(early.pop(order.popleft()))
            while len(coming) > behind:
                yield coming.popleft().image()
        while coming:
            yield coming.popleft().image()

    def _negative_ids(self, settings: DrawSettings) -> list[int] | None:
        prompt = settings.negative_prompt
        return None if prompt is None else self._prompt_ids(prompt, "negative_prompt")

    def _prompt_ids(self, prompt: str, name: str = "prompts") -> list[int]:
        ids = prompt_ids(prompt, self.tokenizer, self._special)
        room = self.parts.config.max_position_embeddings - self.parts.image_tokens
        if len(ids) > room:
            raise ValueError(
                f"{name} must leave room for {self.parts.image_tokens} image tokens: at most {room} tokens each, "
                f"got one of {len(ids)} tokens: {prompt[:40]!r}"
            )
        return ids


@dataclass(frozen=True)
class _Coming:
    """An image whose codes are drawn and whose picture is being decoded."""

    job: Job
    codes: Codes  # on the device
    picture: Callable[[], Image.Image | None]  # waits for it

    def image(self) -> tuple[Job, DrawnImage | None]:
        """Waits for it."""
        job, codes, picture = self.job, self.codes.cpu(), self.picture()
        if picture is None or not codes.finite:
            return job, None
        return job, DrawnImage(
            job.prompt, job.k, picture, codes.tokens, codes.premature_layers, codes.jsd, job.seed, int(codes.passes)
        )


def _all(drawn: Iterable[tuple[Job, DrawnImage | None]]) -> list[DrawnImage]:
    """The images, if all of them are finite."""
    found = list(drawn)
    bad = [job.index for job, image in found if image is None]
    good = [image for _, image in found if image is not None]
    if bad:
        raise NonFiniteError(bad, good)
    return good


def _each(drawn: Iterable[tuple[Job, DrawnImage | None]]) -> Iterator[DrawnImage]:
    """The images, up to the first that is not finite."""
    for job, image in drawn:
        if image is None:
            raise NonFiniteError([job.index])
        yield image
