"""One batch of images being drawn: static tensors, and the step that draws a code of each and feeds it back.

The step is the same sequence of kernels at every token (but for how far attention looks), takes all it needs from device
memory and leaves everything there, so that it can be captured in a CUDA graph.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_dola.engine.backbone import Backbone
from janus_dola.engine.compiled import compiled_blocks
from janus_dola.engine.plan import Plan
from janus_dola.kernels.early_exit import early_exit, early_exit_scores
from janus_dola.kernels.sampling import multinomial
from janus_dola.kernels.types import EarlyExit
from janus_dola.models.parts import JanusParts
from janus_dola.models.taps import tap_buffer, tapped
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
    finite: Tensor  # [B] bool, False where hidden states or logits were not finite at some token


class Decoder:
    """Draws B images at a time by one plan.

    Args:
        code_table: [V, D], what a code is fed back as.
        images: B.
        capacity: positions of prompt and image together, at most.
    """

    def __init__(self, parts: JanusParts, code_table: Tensor, plan: Plan, images: int, capacity: int) -> None:
        self.parts, self.plan, self.images, self.capacity = parts, plan, images, capacity
        self._code_table = code_table
        self._backbone = Backbone(parts, 2 * images, capacity)
        device, steps = parts.device, parts.image_tokens
        self._hidden_states = tap_buffer(parts, plan.layers, 2 * images)  # [L, 2B, D]
        self._layer_of_slot = torch.tensor([*plan.layers, parts.num_layers], device=device)  # [L]
        self._seeds = torch.zeros(images, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)  # of the code drawn next, 0 .. T-1
        self._code = torch.zeros(images, dtype=torch.int64, device=device)  # drawn last
        self._tokens = torch.zeros(images, steps, dtype=torch.int64, device=device)
        self._slots = torch.zeros_like(self._tokens)  # into the stack of layers
        self._jsd = torch.zeros(images, steps, device=device)
        self._finite = torch.ones(images, dtype=torch.bool, device=device)

    def begin(self, prompts: PromptBatch, seeds: Tensor) -> None:
        """Runs the prompts and draws the first code of each image; what was before is forgotten.

        Args:
            prompts: the distinct rows of the prompts, and which of them each of the 2B rows begins with.
            seeds: [B] int64; keys of the noise for the sampler "gumbel".
        """
        self._seeds.copy_(seeds)
        self._position.zero_()
        self._finite.fill_(True)
        of_distinct_rows = tap_buffer(self.parts, self.plan.layers, len(prompts.token_ids))
        with tapped(self.parts, self.plan.layers, of_distinct_rows):
            self._backbone.begin(prompts)
        self._hidden_states.copy_(of_distinct_rows[:, prompts.row_of])
        self._draw()

    def try_steps(self, visible_lengths: Iterable[int]) -> None:
        """Runs steps so that all they need is compiled and loaded; what was being drawn is lost.

        Torch's random numbers are left as they were.
        """
        device = self.parts.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for visible in visible_lengths:
                self._position.zero_()
                self._backbone.rewind()
                self.step(visible)

    def step(self, visible: int) -> None:
        """Feeds the last code of each image back and draws the next.

        Args:
            visible: positions that attention looks at.
        """
        with tapped(self.parts, self.plan.layers, self._hidden_states), self._blocks():
            self._backbone.step(F.embedding(self._code.repeat(2), self._code_table), visible)
        self._draw()

    def _blocks(self) -> AbstractContextManager[None]:
        return compiled_blocks(self.parts) if self.plan.engine == "compile" else nullcontext()

    def _draw(self) -> None:
        found = self._early_exit()
        self._code.copy_(found.code)
        self._tokens.index_copy_(1, self._position, found.code.unsqueeze(1))
        self._slots.index_copy_(1, self._position, found.layer.unsqueeze(1))
        self._jsd.index_copy_(1, self._position, found.jsd.unsqueeze(1))
        self._finite.logical_and_(found.finite)
        self._position += 1

    def _early_exit(self) -> EarlyExit:
        head, decoding, backend = self.parts.head, self.plan.decoding, self.plan.backend
        if self.plan.sampler == "gumbel":
            return early_exit(
                self._hidden_states, head, decoding, self._seeds, self._position.repeat(self.images), backend
            )
        found = early_exit_scores(self._hidden_states, head, decoding, backend)
        code = multinomial(found.scores, decoding.temperature, found.finite)
        return EarlyExit(code, found.layer, found.jsd, found.finite)

    @property
    def key_value_bytes(self) -> int:
        """Memory of the keys and values, which is most of what a decoder holds."""
        return self._backbone.key_value_bytes

    def codes(self, images: int) -> Codes:
        """What has been drawn of the first images; the next batch does not change it."""
        return Codes(
            self._tokens[:images].clone(),
            self._layer_of_slot[self._slots[:images]],
            self._jsd[:images].clone(),
            self._finite[:images].clone(),
        )
