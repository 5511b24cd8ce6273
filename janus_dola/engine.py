"""The decode loop: prefill, then one token at a time for all images of a batch, and nothing read back until the end."""

import inspect
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import StaticCache

from janus_dola.config import DoLaConfig
from janus_dola.kernels.early_exit import early_exit, early_exit_scores
from janus_dola.kernels.sampling import multinomial
from janus_dola.kernels.types import Decoding, EarlyExit
from janus_dola.models.parts import JanusParts
from janus_dola.models.taps import tapped
from janus_dola.prompt import PromptBatch

Sampler = Literal["gumbel", "multinomial"]
SAMPLERS = ("gumbel", "multinomial")


class NonFiniteError(RuntimeError):
    """Hidden states or logits of some images were NaN or infinite; `images` are their indices in the batch."""

    def __init__(self, images: list[int]) -> None:
        super().__init__(
            f"hidden states or logits became NaN or infinite for image(s) {images} of the batch; nothing was drawn. "
            "float16 overflows in some Janus checkpoints: try dtype bfloat16 or float32"
        )
        self.images = images


@dataclass(frozen=True)
class Codes:
    """The codes of a batch of images, and what DoLa did at each. Letters: B images, T image tokens."""

    tokens: Tensor  # [B, T] int64
    premature_layers: Tensor  # [B, T] int64, the layer contrasted with; N where there was no contrast
    jsd: Tensor  # [B, T] float32, its divergence from the final layer in nats; 0 where there was no contrast


@dataclass(frozen=True)
class Plan:
    """Which layers are read at each token, and how a token is chosen from them."""

    layers: tuple[int, ...]  # tapped, in ascending order; the final layer N comes after them
    decoding: Decoding


def plan(dola: DoLaConfig | None, cfg_weight: float, temperature: float, num_layers: int) -> Plan:
    """Turns the settings of a user into a plan for a model of `num_layers` blocks. `dola=None` is the plain baseline.

    Raises:
        ValueError: a value is out of range, or no candidate layer exists in the model.
    """
    layers = tuple(dola.layers_to_read(num_layers)) if dola is not None else ()
    alpha = dola.alpha if dola is not None else 0.0
    premature = None if dola is not None and dola.premature_layer is None else 0
    return Plan(layers, Decoding(cfg_weight, temperature, alpha, premature))


@torch.no_grad()
def draw_codes(
    parts: JanusParts,
    prompts: PromptBatch,
    plan: Plan,
    seeds: Tensor,
    sampler: Sampler = "gumbel",
    generator: torch.Generator | None = None,
    backend: str = "auto",
    progress: bool = False,
) -> Codes:
    """Draws the codes of B images.

    Args:
        prompts: 2B rows of S tokens.
        seeds: [B] int64 on the model's device; keys of the noise for the sampler "gumbel".
        sampler: "gumbel" (counter-based noise) or "multinomial" (torch's generator, as upstream loops use).
        generator: of the multinomial sampler; None is torch's global one.
        backend: of the early-exit stage, see `janus_dola.kernels.early_exit`.
        progress: shows a bar with tokens per second and the time left.
    Raises:
        NonFiniteError: at the end, when hidden states or logits of an image were not finite.
    """
    images, steps = len(seeds), parts.image_tokens
    tokens = torch.zeros(images, steps, dtype=torch.int64, device=parts.device)
    slots = torch.zeros_like(tokens)
    jsd = torch.zeros(images, steps, device=parts.device)
    finite = torch.ones(images, dtype=torch.bool, device=parts.device)
    positions = torch.arange(steps, device=parts.device)
    backbone = Backbone(parts, prompts, steps)
    with tapped(parts, plan.layers, 2 * images) as hidden_states:
        backbone.prefill()
        for position in tqdm(range(steps), disable=not progress, unit="tok", unit_scale=images, leave=False):
            if position > 0:
                backbone.step(parts.embed_codes(tokens[:, position - 1]))
            if sampler == "gumbel":
                found = early_exit(hidden_states, parts.head, plan.decoding, seeds, positions[position], backend)
            else:
                found = _draw_multinomial(hidden_states, parts, plan.decoding, generator, backend)
            tokens[:, position] = found.code
            slots[:, position] = found.layer
            jsd[:, position] = found.jsd
            finite &= found.finite
    if not bool(finite.all()):
        raise NonFiniteError((~finite).nonzero().flatten().tolist())
    layer_of_slot = torch.tensor([*plan.layers, parts.num_layers], device=parts.device)
    return Codes(tokens, layer_of_slot[slots], jsd)


def _draw_multinomial(
    hidden_states: Tensor, parts: JanusParts, decoding: Decoding, generator: torch.Generator | None, backend: str
) -> EarlyExit:
    found = early_exit_scores(hidden_states, parts.head, decoding, backend)
    code = multinomial(found.scores, decoding.temperature, found.finite, generator)
    return EarlyExit(code, found.layer, found.jsd, found.finite)


class Backbone:
    """The language model with a static key-value cache, fed with embeddings, whose hidden states the taps read."""

    def __init__(self, parts: JanusParts, prompts: PromptBatch, steps: int) -> None:
        rows, length = prompts.token_ids.shape
        self._parts = parts
        self._prompts = prompts
        self._cache = StaticCache(config=parts.config, max_cache_len=length + steps)
        # One mask for the whole image: the padding is hidden, and what is not written yet is hidden by causality.
        self._attended = torch.ones(rows, length + steps, dtype=torch.int64, device=parts.device)
        self._attended[:, :length] = prompts.attended
        # A token's position counts the attended tokens before it, so that padding moves nothing.
        self._positions = (self._attended.cumsum(-1) - 1).clamp(min=0)
        self._takes_cache_position = "cache_position" in inspect.signature(parts.backbone.forward).parameters
        self._filled = 0

    def prefill(self) -> None:
        """Runs the prompts."""
        self._run(self._parts.embed_text(self._prompts.token_ids))

    def step(self, embeddings: Tensor) -> None:
        """Runs one token: [B, D] embeddings of the codes just drawn, the same for both rows of an image."""
        self._run(embeddings.repeat(2, 1).unsqueeze(1))

    def _run(self, embeddings: Tensor) -> None:
        start, self._filled = self._filled, self._filled + embeddings.shape[1]
        arguments = {}
        if self._takes_cache_position:  # transformers 4
            arguments["cache_position"] = torch.arange(start, self._filled, device=embeddings.device)
        self._parts.backbone(
            inputs_embeds=embeddings,
            attention_mask=self._attended,
            position_ids=self._positions[:, start : self._filled],
            past_key_values=self._cache,
            use_cache=True,
            **arguments,
        )
