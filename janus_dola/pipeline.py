"""`JanusDoLa`: the public API. Prompts in; images, codes and what DoLa did at each code out."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from janus_dola.config import DoLaConfig
from janus_dola.engine.decode import Codes, NonFiniteError
from janus_dola.engine.engine import Engine
from janus_dola.engine.pictures import start_decoding
from janus_dola.engine.plan import Plan, Sampler, plan
from janus_dola.engine.schedule import Job, batches, images_that_fit
from janus_dola.models import JanusParts, find_parts, load
from janus_dola.models.quantize import Quantization, check_quantization, quantize_blocks
from janus_dola.prompt import prompt_batch, prompt_ids

_MAX_SEED = 2**63 - 1


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


class JanusDoLa:
    """A Janus model that draws images with DoLa decoding, or without.

    Args:
        model: transformers' `JanusForConditionalGeneration` or DeepSeek's `MultiModalityCausalLM`; used as it is, on the
            device and in the dtype it has.
        tokenizer: the tokenizer that belongs to it.
    Raises:
        ValueError: the model is of neither family, or the tokenizer lacks the tokens of Janus.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.parts: JanusParts = find_parts(model)
        self._special = self.parts.special_tokens(tokenizer)
        self._engine = Engine(self.parts)

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
            dtype: None is float32 on a CPU and bfloat16 elsewhere.
            revision: of the repository.
            quantize: "int8" or "fp8" stores the weights of the blocks in 8 bits (needs the extra `quantize`): half the
                memory of 16 bits, and some tokens come out differently. On a GPU it is slow but with the engine "compile".
        Raises:
            FileNotFoundError: no checkpoint is there.
            ValueError: the checkpoint is not a Janus model, the dtype or the quantisation is unknown.
            ImportError: torchao is needed and not installed.
        """
        check_quantization(quantize)
        pipe = cls(*load(model, device, dtype, revision))
        if quantize is not None:
            quantize_blocks(pipe.parts, quantize)
        return pipe

    def generate(
        self,
        prompts: str | Sequence[str],
        parallel_size: int = 1,
        dola: DoLaConfig | None = DoLaConfig(),  # noqa: B008 (frozen)
        cfg_weight: float = 5.0,
        temperature: float = 1.0,
        seed: int | None = 0,
        sampler: Sampler = "gumbel",
        backend: str = "auto",
        engine: str = "auto",
        strict: bool = False,
        progress: bool = False,
    ) -> GenerationOutput:
        """Draws `parallel_size` images for each prompt.

        Args:
            prompts: one or several; they may differ in length.
            parallel_size: K, images per prompt.
            dola: how layers are contrasted; None is the plain baseline with the same sampler.
            cfg_weight: weight w of classifier-free guidance; 1 follows the prompt without guidance.
            temperature: T >= 0, applied to the contrasted distribution; 0 is greedy.
            seed: image k of prompt i has the seed `seed + i * parallel_size + k`. With the sampler "gumbel" an image depends
                on its own seed only, not on its batch. None picks a random one. The sampler "multinomial" seeds one
                torch generator for the whole batch with `seed`; None is torch's global one, as upstream loops use.
            sampler: "gumbel" (counter-based noise) or "multinomial" (torch.multinomial, to match other loops draw for draw).
            backend: of the early-exit stage: "auto", "reference", "torch" or "triton" (fused kernels, on a GPU).
            engine: how a step is run: "auto", "graph" (one CUDA graph replayed for each token), "compile" (torch.compile of
                the blocks, under the same graph on a GPU) or "eager". "auto" is "graph" on a CUDA device, else "eager".
            strict: a step that cannot be compiled or captured is an error; otherwise it runs eagerly, after a warning.
            progress: shows a bar with tokens per second and the time left.
        Raises:
            ValueError: an argument is out of range; nothing has been drawn then.
            NonFiniteError: hidden states or logits became NaN or infinite.
            RuntimeError: with `strict`, the step cannot be compiled or captured.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise ValueError("prompts must hold at least one string, got none")
        planned = plan(self.parts, dola, cfg_weight, temperature, sampler, backend, engine)
        self._check(parallel_size, seed, len(prompts))
        base = random.getrandbits(62) if seed is None else seed
        jobs = list(self._jobs(prompts, parallel_size, base))
        if sampler == "gumbel":
            drawn = list(self._draw(batches(jobs, self._limit), planned, strict, progress))
        else:  # draws of one generator for all images, so in one batch
            with _torch_seed(seed, self.parts.device):
                drawn = list(self._draw([jobs], planned, strict, progress))
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
        )

    def stream(
        self,
        prompts: Iterable[str],
        parallel_size: int = 1,
        dola: DoLaConfig | None = DoLaConfig(),  # noqa: B008 (frozen)
        cfg_weight: float = 5.0,
        temperature: float = 1.0,
        seed: int = 0,
        backend: str = "auto",
        engine: str = "auto",
        strict: bool = False,
        max_images: int | None = None,
        progress: bool = False,
    ) -> Iterator[DrawnImage]:
        """Draws images of any number of prompts in full batches, and yields them in order as each batch is done.

        On a GPU the next batch is being drawn while the pictures of the last are decoded and handed out.

        Args:
            prompts: read as they are needed.
            parallel_size, dola, cfg_weight, temperature, seed, backend, engine, strict: as for `generate` with the sampler
                "gumbel".
            max_images: images drawn at once; None is as many as fit into memory.
            progress: shows a bar for each batch, with tokens per second and the time left.
        Raises:
            ValueError: a setting is out of range, before anything is drawn; or a prompt is, when its turn comes.
            NonFiniteError: hidden states or logits became NaN or infinite.
            RuntimeError: with `strict`, the step cannot be compiled or captured.
        """
        planned = plan(self.parts, dola, cfg_weight, temperature, "gumbel", backend, engine)
        self._check(parallel_size, seed, 1)
        if max_images is not None and (
            isinstance(max_images, bool) or not isinstance(max_images, int) or max_images < 1
        ):
            raise ValueError(f"max_images must be None or an int >= 1, got {max_images!r}")
        jobs = self._jobs(prompts, parallel_size, seed)
        together = batches(jobs, lambda longest: max_images or self._limit(longest))
        return self._draw(together, planned, strict, progress)

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        dola: DoLaConfig | None = DoLaConfig(),  # noqa: B008 (frozen)
        cfg_weight: float = 5.0,
        temperature: float = 1.0,
        backend: str = "auto",
        engine: str = "auto",
    ) -> list[DrawnImage]:
        """Draws one image for each prompt and its seed, all at once.

        Args:
            prompts: at least one; the same one several times gives several images of it.
            seeds: one for each image, 0 .. 2**63 - 1.
            dola, cfg_weight, temperature, backend, engine: as for `generate` with the sampler "gumbel".
        Returns:
            the images in order; `prompt` counts them, and `k` is 0.
        Raises:
            ValueError: an argument is out of range; nothing has been drawn then.
            NonFiniteError: hidden states or logits became NaN or infinite; its `images` count the prompts given.
        """
        if not prompts or len(prompts) != len(seeds):
            raise ValueError(f"seeds must be one for each of at least one prompt, got {len(seeds)} for {len(prompts)}")
        for seed in seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _MAX_SEED:
                raise ValueError(f"seeds must be ints in 0 .. {_MAX_SEED}, got {seed!r}")
        planned = plan(self.parts, dola, cfg_weight, temperature, "gumbel", backend, engine)
        jobs = [Job(i, i, 0, self._prompt_ids(prompt), seeds[i]) for i, prompt in enumerate(prompts)]
        return list(self._draw([jobs], planned, strict=False, progress=False))

    def check_prompt(self, prompt: str) -> None:
        """Raises ValueError where a prompt is too long for the model."""
        self._prompt_ids(prompt)

    def _limit(self, prompt_tokens: int) -> int:
        return images_that_fit(self.parts, prompt_tokens, self._engine.kept_bytes)

    @staticmethod
    def _check(parallel_size: int, seed: int | None, prompts: int) -> None:
        if isinstance(parallel_size, bool) or not isinstance(parallel_size, int) or parallel_size < 1:
            raise ValueError(f"parallel_size must be an int >= 1, got {parallel_size!r}")
        last = _MAX_SEED - prompts * parallel_size
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= last):
            raise ValueError(f"seed must be None or an int in 0 .. {last}, got {seed!r}")

    def _jobs(self, prompts: Iterable[str], parallel_size: int, seed: int) -> Iterator[Job]:
        for index, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise ValueError(f"prompts must be strings, got {prompt!r}")
            token_ids = self._prompt_ids(prompt)
            if seed + (index + 1) * parallel_size > _MAX_SEED:
                raise ValueError(f"seed must leave room for prompt {index} below {_MAX_SEED}, got {seed}")
            for k in range(parallel_size):
                yield Job(index * parallel_size + k, index, k, token_ids, seed + index * parallel_size + k)

    def _draw(self, together: Iterable[list[Job]], planned: Plan, strict: bool, progress: bool) -> Iterator[DrawnImage]:
        """Draws batch after batch. On a GPU a batch is queued before the pictures of the one before it are waited for."""
        waiting: _Batch | None = None
        following = iter(together)
        while True:
            try:
                jobs = next(following, None)
                codes = None if jobs is None else self._queue(jobs, planned, strict, progress)
            except Exception:
                if waiting is not None:
                    yield from waiting.images()
                raise
            if waiting is not None:
                yield from waiting.images()
            if jobs is None or codes is None:
                return
            waiting = _Batch.of(jobs, codes, self.parts)
            if self.parts.device.type != "cuda":
                yield from waiting.images()
                waiting = None

    def _queue(self, jobs: list[Job], planned: Plan, strict: bool, progress: bool) -> Codes:
        rows = prompt_batch([job.token_ids for job in jobs], self._special, self.parts.device)
        seeds = torch.tensor([job.seed for job in jobs], device=self.parts.device)
        return self._engine.draw(rows, seeds, planned, strict, progress)

    def _prompt_ids(self, prompt: str) -> list[int]:
        ids = prompt_ids(prompt, self.tokenizer, self._special)
        room = self.parts.config.max_position_embeddings - self.parts.image_tokens
        if len(ids) > room:
            raise ValueError(
                f"prompts must leave room for {self.parts.image_tokens} image tokens: at most {room} tokens each, "
                f"got one of {len(ids)} tokens: {prompt[:40]!r}"
            )
        return ids


@dataclass(frozen=True)
class _Batch:
    """A batch whose codes are drawn and whose pictures are being decoded."""

    jobs: list[Job]
    codes: Codes  # on the CPU
    pictures: Callable[[], list[Image.Image]]  # waits for them

    @staticmethod
    def of(jobs: list[Job], codes: Codes, parts: JanusParts) -> "_Batch":
        """Waits for the codes.

        Raises:
            NonFiniteError: hidden states or logits of an image were not finite.
        """
        finite = codes.finite.tolist()
        if not all(finite):
            raise NonFiniteError([job.index for job, fine in zip(jobs, finite, strict=True) if not fine])
        pictures = start_decoding(parts, codes.tokens)
        return _Batch(jobs, Codes(*(getattr(codes, field.name).cpu() for field in fields(codes))), pictures)

    def images(self) -> Iterator[DrawnImage]:
        """The images in order."""
        codes = self.codes
        for i, (job, picture) in enumerate(zip(self.jobs, self.pictures(), strict=True)):
            yield DrawnImage(
                job.prompt, job.k, picture, codes.tokens[i], codes.premature_layers[i], codes.jsd[i], job.seed
            )


@contextmanager
def _torch_seed(seed: int | None, device: torch.device) -> Iterator[None]:
    """Torch's global generator seeded for a while, and as it was afterwards; None leaves it alone."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
