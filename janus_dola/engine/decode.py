"""The decode loop: prompts once, then one token at a time for all images of a batch, and nothing read back until the end."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from janus_dola.engine.backbone import Backbone
from janus_dola.engine.plan import Plan, Sampler
from janus_dola.kernels.early_exit import early_exit, early_exit_scores
from janus_dola.kernels.sampling import multinomial
from janus_dola.kernels.types import Decoding, EarlyExit
from janus_dola.models.parts import JanusParts
from janus_dola.models.taps import tapped
from janus_dola.prompt import PromptBatch


class NonFiniteError(RuntimeError):
    """Hidden states or logits of some images were NaN or infinite; `images` are their indices, over all prompts."""

    def __init__(self, images: list[int]) -> None:
        super().__init__(
            f"hidden states or logits became NaN or infinite for image(s) {images}, counted over all prompts. "
            "float16 overflows in some Janus checkpoints: try dtype bfloat16 or float32"
        )
        self.images = images


@dataclass(frozen=True)
class Codes:
    """The codes of a batch of images, and what DoLa did at each. Letters: B images, T image tokens."""

    tokens: Tensor  # [B, T] int64
    premature_layers: Tensor  # [B, T] int64, the layer contrasted with; N where there was no contrast
    jsd: Tensor  # [B, T] float32, its divergence from the final layer in nats; 0 where there was no contrast


@torch.no_grad()
def draw_codes(
    parts: JanusParts,
    code_table: Tensor,
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
        code_table: [V, D], what a code is fed back as.
        prompts: the distinct rows of the prompts, and which of them each of the 2B rows begins with.
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
    with tapped(parts, plan.layers, len(prompts.token_ids)) as of_distinct_rows:
        backbone.prefill()
    with tapped(parts, plan.layers, 2 * images) as hidden_states:
        hidden_states.copy_(of_distinct_rows[:, prompts.row_of])
        del of_distinct_rows
        for position in tqdm(range(steps), disable=not progress, unit="tok", unit_scale=images, leave=False):
            if position > 0:
                backbone.step(F.embedding(tokens[:, position - 1].repeat(2), code_table))
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
