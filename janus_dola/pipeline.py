"""`JanusDoLa`: the public API. Prompts in; images, codes and what DoLa did at each code out."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from typing_extensions import Unpack

from janus_dola.arguments import (
    MAX_PARALLEL_SIZE,
    MAX_SEED,
    Quantization,
    Window,
    check_max_images,
    check_window,
    integer,
    iterable_of_strings,
    last_seed,
    seeds_of,
    strings,
    takes_engine,
)
from janus_dola.contrasts import DEFAULT_CONTRAST, Contrast
from janus_dola.engine.ordered_images import all_of, draw_images, each_of, jobs_of
from janus_dola.engine.pipeline_base import PipelineBase
from janus_dola.engine.plan import Sampler, lens_of, make_plan, resolve_launch, weights_named
from janus_dola.engine.policy import Policy, policy_of
from janus_dola.engine.progress import Callback
from janus_dola.engine.scoring import CodeScores, scores_of_images
from janus_dola.images.outputs import DrawnImage, GenerationOutput
from janus_dola.images.recipe import Recipe
from janus_dola.kernels.head import resolve_backend
from janus_dola.kernels.sampling import log_probabilities
from janus_dola.kernels.types import Scores
from janus_dola.models.checkpoint.hub import commit_of, public_name, resolve
from janus_dola.models.checkpoint.load import Checkpoint, load
from janus_dola.models.contexts import undisturbed
from janus_dola.models.storage import check_quantization, device_and_dtype, move_model, pack_for_cpu, quantize_blocks
from janus_dola.settings import Changes, DrawSettings, OldName, named_contrast
from janus_dola.text.answer import Answering


class JanusDoLa(PipelineBase):
    """An image model that draws with DoLa decoding, or without.

    Args:
        model: transformers' `JanusForConditionalGeneration`, DeepSeek's `MultiModalityCausalLM`, or one from another family
            that `janus_dola.models` has an adapter for; used as it is, on the device and in the dtype it has, and
            changed by `to` alone.
        tokenizer: the tokenizer that belongs to it, or the processor that holds it.
    Attributes:
        model, tokenizer: as they were given or loaded.
        image_model: the model's pieces; `image_model.device` and `image_model.dtype` are the model's.
        prompts: turns words into token ids.
        engine: draws codes; keeps memory for the next call, which `engine.release()` gives back.
        model_name, revision, quantize: the model as recipes name it.
    Raises:
        ValueError: no family recognises the model, or the tokenizer lacks its tokens.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> None:
        super().__init__(model, tokenizer)
        name = getattr(model, "name_or_path", "") or type(model).__name__
        self.model_name, self.revision = public_name(name), commit_of(name)
        self.quantize: Quantization | None = None

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
            device: None is a GPU if there is one, else the CPU.
            dtype: None is float32 on a CPU and bfloat16 elsewhere (float16 on a GPU without it). "float16" on a CPU (x86)
                packs the weights in 16 bits and computes in float32. `janus-dola info` says what is fastest here.
            revision: branch, tag or commit of the repository.
            quantize: "int8" or "fp8" stores the blocks' weights in 8 bits (needs the extra `quantize`): half the memory of
                16 bits, and some tokens come out differently. On a GPU it is slow except with launch="compile".
        Raises:
            FileNotFoundError: no checkpoint is there.
            ValueError: the checkpoint is damaged or of no known family, or the dtype or the quantisation is unknown.
            ImportError: torchao is needed and not installed.
        """
        check_quantization(quantize)
        loaded, own_tokenizer = load(model, device, dtype, revision)
        with undisturbed():
            if quantize is None:
                pack_for_cpu(loaded)
            pipe = cls(loaded, own_tokenizer)
            if quantize is not None:
                quantize_blocks(pipe.image_model, quantize)
            else:
                pipe.engine.weights.lay_as_one()
        pipe.model_name, pipe.revision = public_name(model), revision or commit_of(model)
        pipe.quantize, pipe._stores = quantize, quantize is None
        return pipe

    @classmethod
    def check(
        cls,
        model: str | Path,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        quantize: str | None = None,
        *,
        settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
        backend: str = "auto",
        launch: str = "auto",
        prompts: Iterable[str] = (),
        pictures_for: str | None = None,
    ) -> None:
        """Checks what `from_pretrained` and `generate` take against a model's description and against this machine.

        Loads no weights, and raises FileNotFoundError, ValueError or ImportError as they would; a ValueError, too, if the
        model does not paint its codes itself, where `pictures_for` names something that needs pictures.
        """
        check_quantization(quantize)
        on, stored = device_and_dtype(device, dtype)
        resolve_backend(backend, on, stored)
        resolve_launch(launch, on)
        checkpoint = Checkpoint.open(resolve(model, revision, weights=False))
        pipe = cls(checkpoint.skeleton(), checkpoint.tokenizer())
        if pictures_for is not None:
            pipe.image_model.check_paints(pictures_for)
        pipe._check(settings)
        pipe._rows_of_prompt(settings.negative_prompt)
        for prompt in prompts:
            pipe.check_prompt(prompt)

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> "JanusDoLa":
        """Moves the model in place, as if it had been loaded there, and returns this object. No thread may draw meanwhile.

        Args:
            device: such as "cuda"; None leaves it where it is.
            dtype: "float32", "bfloat16", "float16" or "float64"; None keeps the weights' own. Rounded weights stay rounded.
        Raises:
            ValueError: there is no such device or dtype, or weights in 8 bits shall have another dtype.
        """
        with undisturbed():
            move_model(self.model, self.image_model, device, dtype)
            if self._stores:
                pack_for_cpu(self.model)
        self._adapt()
        if self._stores:
            self.engine.weights.lay_as_one()
        return self

    def __repr__(self) -> str:
        return f"JanusDoLa({self.model_name!r}, {self.quantize or self.image_model.stored_as} on {self.image_model.device})"

    @takes_engine
    def generate(
        self,
        prompts: str | Sequence[str],
        parallel_size: int = 1,
        settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
        *,
        seed: int | Sequence[int] | None = 0,
        sampler: Sampler = "gumbel",
        backend: str = "auto",
        launch: str = "auto",
        window: Window = "auto",
        max_images: int | None = None,
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
                on its own seed only, not on its batch. None picks a random one; a sequence gives each image its own, prompt
                by prompt. The sampler "multinomial" seeds one torch generator for the whole batch with `seed`; None is
                torch's global one, as upstream loops use.
            sampler: "gumbel" (counter-based noise) or "multinomial" (torch.multinomial, to match other loops draw for draw).
            backend: runs the head stage: "auto", "reference", "torch" or "triton" (fused kernels, on a GPU). With "triton"
                the blocks run by our kernels, too, unless they are float16 or quantized, have an adapter, or the launch is
                "compile"; the other backends leave the blocks to torch and cuBLAS.
            launch: how a pass is run: "auto", "graph" (one CUDA graph replayed for each pass), "compile" (torch.compile
                for the blocks, under the same graph on a GPU) or "eager". "auto" is "graph" on a CUDA device, else "eager".
                A pass that cannot be compiled or captured runs eagerly, after a UserWarning. `engine` is its old name.
            window: codes fed per pass and image: 1, 2, 4, 8, 16, 32, or "auto" for what is fastest. The images are the
                same, in fewer passes; see `janus_dola.engine.slots`. The sampler "multinomial" has 1 only.
            max_images: images drawn at once; None is as many as fit into memory. Where memory runs out, half as many, in
                later calls, too, until `engine.release()`. The sampler "multinomial" draws all at once.
            progress: shows a bar with tokens per second and, in `generate`, the time left.
            callback: called with (codes decided, codes of the images begun) whenever some are decided, in the thread that
                draws. What it raises ends drawing and comes out here, so that another thread can cancel through it.
            changes: fields that replace those of `settings`: `generate(prompts, contrast=None, temperature=0.7)`.
        Raises:
            ValueError: an argument is out of range; nothing has been drawn then.
            NonFiniteError: hidden states, logits or pixels became NaN or infinite.
            torch.OutOfMemoryError: not one image fits into memory or, with the sampler "multinomial", not all at once.
        """
        prompts, settings = strings(prompts), self.fitted(settings, changes)
        plan = make_plan(self._drawn_with(), settings, sampler, backend, launch)
        window, max_images = check_window(window, sampler), check_max_images(max_images)
        parallel_size = integer("parallel_size", parallel_size, 1, MAX_PARALLEL_SIZE)
        images = len(prompts) * parallel_size
        seeds, generator = seeds_of(seed, images, sampler), None
        if sampler == "multinomial" and seed is not None:
            generator = torch.Generator(self.image_model.device).manual_seed(seeds[0])
        rows, params = self._rows_of_prompt(settings.away_from), settings.sampling_params(plan.layers)
        jobs = list(jobs_of(prompts, rows, parallel_size, seeds, params))
        recipe = self.recipe(settings, window)
        drawn = all_of(draw_images(self.engine, jobs, plan, recipe, max_images, generator, progress, callback))
        return GenerationOutput([drawn[i : i + parallel_size] for i in range(0, images, parallel_size)])

    __call__ = generate

    @takes_engine
    def stream(
        self,
        prompts: str | Iterable[str],
        parallel_size: int = 1,
        settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
        *,
        seed: int = 0,
        backend: str = "auto",
        launch: str = "auto",
        window: Window = "auto",
        max_images: int | None = None,
        slots: int | None = None,
        progress: bool = False,
        callback: Callback | None = None,
        **changes: Unpack[Changes],
    ) -> Iterator[DrawnImage]:
        """Draws images for any number of prompts, and yields them in order as they are done.

        An image that is done makes room for the next one at once, while the others go on. Prompts are read as needed.

        Args:
            prompts, parallel_size, settings, seed, backend, launch, window, max_images, progress, callback, changes: as for
                `generate` with the sampler "gumbel".
            slots: images that each pass is computed for, at least: in 16 bits they decide the last bits. None: those drawn.
        Raises:
            ValueError: a setting is out of range, before anything is drawn; or a prompt is, when its turn comes.
            NonFiniteError: hidden states, logits or pixels became NaN or infinite.
            torch.OutOfMemoryError: not one image fits into memory.
        """
        settings = self.fitted(settings, changes)
        plan = make_plan(self._drawn_with(), settings, "gumbel", backend, launch)
        window, max_images = check_window(window), check_max_images(max_images)
        parallel_size = integer("parallel_size", parallel_size, 1, MAX_PARALLEL_SIZE)
        seed = integer("seed", seed, 0, last_seed(parallel_size))
        rows, params = self._rows_of_prompt(settings.away_from), settings.sampling_params(plan.layers)
        jobs = jobs_of(iterable_of_strings(prompts), rows, parallel_size, range(seed, MAX_SEED + 1), params)
        recipe = self.recipe(settings, window, check_max_images(slots, "slots"))
        return each_of(draw_images(self.engine, jobs, plan, recipe, max_images, progress=progress, callback=callback))

    def log_probs(
        self,
        prompts: str | Sequence[str],
        tokens: Tensor,
        settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
        *,
        premature_layers: Tensor | None = None,
        grad: bool = False,
        **changes: Unpack[Changes],
    ) -> Tensor:
        """Returns the log-probability of each code under the distribution that these settings draw it from.

        That is softmax(F / T) on the plausible codes (`janus_dola.kernels.reference`), given prompt and the codes before,
        in one pass over each image. With the settings that `tokens` were drawn with, what a policy gradient needs.

        Args:
            prompts: P, one or several.
            tokens: [P, K, T] int64, K images of each prompt, as `GenerationOutput.tokens`.
            settings, changes: as for `generate`.
            premature_layers: [P, K, T] int64, as `GenerationOutput.premature_layers`: contrasts with these layers, each a
                candidate or N (no contrast), as drawn with. None chooses them by the settings.
            grad: returns them with gradients, as `policy` does.
        Returns:
            [P, K, T] float32 on the CPU, nats, at most 0; -inf for a code that cannot be drawn. Without gradients, but
            fit for a loss: no inference tensor, also where they are computed in `torch.inference_mode()`.
        Raises:
            ValueError: an argument is out of range.
        """
        if grad:
            return self.policy(prompts, tokens, settings, premature_layers=premature_layers, **changes).log_probs
        settings = self.fitted(settings, changes)
        with undisturbed(self._drawn_with().device):
            scores, _ = self._scores(prompts, tokens, settings, premature_layers)
            log_probs = [
                log_probabilities(each.scores, settings.temperature, codes.to(each.scores.device)).cpu()
                for codes, each in zip(tokens.flatten(0, 1), scores, strict=True)
            ]
            return torch.stack(log_probs).view(tokens.shape).float()

    def policy(
        self,
        prompts: str | Sequence[str],
        tokens: Tensor,
        settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
        *,
        premature_layers: Tensor | None = None,
        reference: "JanusDoLa | None" = None,
        **changes: Unpack[Changes],
    ) -> Policy:
        """Returns log-probabilities with gradients, entropy, and the divergence from a reference policy, in one pass.

        All images go through the model's own modules together, in the mode they are in and under the caller's autocast; so
        do adapters and gradient checkpointing. Which layer is contrasted with, and which codes are drawn, has no gradient.

        Args:
            prompts, tokens, settings, premature_layers, changes: as for `log_probs`; the temperature is above 0.
            reference: a model of the same kind to compare with; no gradients reach it.
        Raises:
            ValueError: an argument is out of range, or the weights are packed.
        """
        settings, image_model = self.fitted(settings, changes), self._drawn_with()
        if settings.lens is not None:
            raise ValueError(f"lens must be None for gradients, which change its weights, got {settings.lens!r}")
        frozen = None if reference is None else reference._drawn_with()
        rows, layers, params, given = self._given(prompts, tokens, settings, premature_layers)
        return policy_of(image_model, rows, tokens, layers, params, given, frozen)

    def scores(
        self,
        prompts: str | Sequence[str],
        tokens: Tensor,
        settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
        *,
        premature_layers: Tensor | None = None,
        **changes: Unpack[Changes],
    ) -> CodeScores:
        """Returns the whole distribution that these settings draw each code from, and what was contrasted there.

        Teacher-forced: given prompt and the codes before, in one pass over each image. An image's 576 distributions over
        16384 codes take 38 MB.

        Args:
            prompts, tokens, settings, premature_layers, changes: as for `log_probs`.
        Raises:
            ValueError: an argument is out of range.
        """
        settings = self.fitted(settings, changes)
        with undisturbed(self._drawn_with().device):
            scores, layers = self._scores(prompts, tokens, settings, premature_layers)
            return CodeScores.of(scores, tokens.shape, layers, settings.temperature)

    def answer(
        self,
        images: Image.Image | Sequence[Image.Image],
        question: str,
        contrast: Contrast | None = DEFAULT_CONTRAST,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        stream: bool = False,
        **old: Unpack[OldName],
    ) -> str | Iterator[str]:
        """Answers a question about one or several pictures.

        Args:
            images: of any size and mode; each takes T + 2 tokens of the model's room.
            question: in words; names of special tokens among them are plain text.
            contrast: how layers are contrasted through the text head; None is plain decoding. `dola` is taken, too.
            max_new_tokens: the longest answer, in tokens; shorter where the model's room ends.
            temperature: T, 0 or in 1e-6 .. 1e10; 0 is greedy, with more the words are drawn by torch's global generator.
            stream: yields the answer in pieces, as it comes; a loop that ends early ends it.
        Raises:
            ValueError: an argument is out of range, or the question has no room. Nothing has been computed then.
        """
        contrast = named_contrast(contrast, old)
        answer = Answering(self._drawn_with(), self.tokenizer, images, question, contrast, max_new_tokens, temperature)
        return answer.pieces() if stream else answer.text()

    def _scores(
        self, prompts: str | Sequence[str], tokens: Tensor, settings: DrawSettings, premature_layers: Tensor | None
    ) -> tuple[Iterator[Scores], tuple[int, ...]]:
        """Returns the scores of images, one after the other, and the layers they are read from."""
        rows, layers, params, given = self._given(prompts, tokens, settings, premature_layers)
        read = self.image_model, self.engine.weights.read(), rows, tokens, layers, params, given
        return scores_of_images(*read, lens_of(self.image_model, settings)), (*layers, self.image_model.num_layers)

    def recipe(self, settings: DrawSettings, window: Window = "auto", slots: int | None = None) -> Recipe:
        """Returns the recipe that images drawn now share; prompt and seed are left to each."""
        now = self.image_model.stored_as, self.quantize, window, self.revision, slots
        return Recipe(self.model_name, "", 0, settings, *now, weights_named(self.image_model, settings))
