"""The decoder: admits images to slots, and runs passes, each of which draws codes of all of them.

A pass is the same sequence of kernels each time (but for how far attention looks), takes all it needs from device memory and
leaves everything there, so that it can be captured in a CUDA graph.
"""

import warnings
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_dola.engine.devices import has_graphs, upload, waits_are_errors
from janus_dola.engine.graphs import capture
from janus_dola.engine.plan import Plan
from janus_dola.engine.slots import Slots
from janus_dola.kernels.block import CANNOT_RUN, resolve_blocks
from janus_dola.kernels.block_torch import PassStart, buffer_shape, run_whole
from janus_dola.kernels.head import head_scores, sample_codes
from janus_dola.kernels.sampling import multinomial
from janus_dola.kernels.types import SampledCodes, SamplingParams, SamplingTensors
from janus_dola.models.model import ImageModel, PromptRows
from janus_dola.models.weights import Weights

# Attention looks at a multiple of so many positions: few different shapes, little reading of what is not written yet.
VISIBLE_MULTIPLE = 64
_PROMPTS_KEPT = 8


def visible_length(written: int) -> int:
    """How many positions attention looks at when so many are written."""
    return -(-written // VISIBLE_MULTIPLE) * VISIBLE_MULTIPLE


class Decoder:
    """Draws S images at a time by one plan.

    Args:
        weights: of the model, as they are now.
        slots: S.
        capacity: positions of prompt, image and guesses together, at most.
        generator: of the sampler "multinomial"; None is torch's global one.
    """

    def __init__(
        self,
        image_model: ImageModel,
        weights: Weights,
        plan: Plan,
        slots: int,
        capacity: int,
        generator: torch.Generator | None = None,
    ) -> None:
        self.image_model, self.weights, self.plan, self.capacity, self.generator = (
            image_model,
            weights,
            plan,
            capacity,
            generator,
        )
        shape = buffer_shape(weights.blocks, 2 * slots, capacity)
        self.keys_values = torch.zeros(shape, dtype=image_model.dtype, device=image_model.device)
        layers = torch.tensor([*plan.layers, image_model.num_layers], device=image_model.device)
        sampling = SamplingTensors.repeat(plan.params, slots * plan.window, self.keys_values)
        self.slots = Slots(slots, image_model.raster, plan.window, layers, sampling)
        self._run_blocks = resolve_blocks(plan.backend, weights.blocks, plan.window, plan.launch == "compile")
        self.prompts: OrderedDict[tuple[int, ...], tuple[Tensor, Tensor]] = OrderedDict()
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}  # of passes, by the visible length, made when first needed
        self._captures = plan.launch != "eager" and has_graphs(image_model.device)
        self.strict, self._gave_up = True, False  # is a capture that fails an error; did one fail that was none
        self._pool = torch.cuda.graph_pool_handle() if self._captures else None

    def admit(
        self,
        slots: Sequence[int],
        rows: Sequence[PromptRows],
        seeds: Sequence[int],
        sampling: Sequence[SamplingParams] = (),
    ) -> None:
        """Images begin in these slots: runs what is new of their prompts, and draws their first codes.

        Args:
            seeds: keys of the noise for the sampler "gumbel".
            params: of each image, or none for the plan's.
        """
        count = len(self.slots.seeds)
        hidden_states = []
        for side, tokens_of_side in enumerate(zip(*rows, strict=True)):
            for slot, tokens in zip(slots, tokens_of_side, strict=True):
                keys_values, last = self._prompt(tuple(tokens))
                row = self.keys_values[:, side * count + slot]
                row[:, : len(tokens)] = keys_values
                row[:, len(tokens) :] = 0  # what is masked must be finite
                hidden_states.append(last)
        of_seeds = upload(seeds, self.image_model.device)
        each = sampling or [self.plan.params] * len(slots)
        of_decodings = SamplingTensors.of(each, self.slots.jsd)
        first = self._draw(torch.stack(hidden_states, 1), of_decodings, of_seeds, torch.zeros_like(of_seeds))
        lengths = upload([len(row) for side in zip(*rows, strict=True) for row in side], self.image_model.device)
        self.slots.admit(upload(slots, self.image_model.device), lengths, of_seeds, of_decodings, first)

    def _prompt(self, tokens: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Keys and values [N, S, 2, H, d] of a row of S tokens, and the last hidden states [L, D] of the layers read.

        A row is run alone, so that nothing of it depends on the others, and once, as long as it is used.
        """
        if tokens not in self.prompts:
            weights, embeddings = (
                self.weights,
                self.image_model.embed_text(upload(tokens, self.image_model.device)).unsqueeze(0),
            )
            keys_values, states = run_whole(embeddings, weights.blocks, weights.rotary, self.plan.layers)
            self.prompts[tokens] = keys_values[:, 0], states[:, 0, -1].clone()
            if len(self.prompts) > _PROMPTS_KEPT:
                self.prompts.popitem(last=False)
        self.prompts.move_to_end(tokens)
        return self.prompts[tokens]

    def try_out(self) -> None:
        """Passes over empty slots, if not eager: what cannot be compiled or captured fails here. Draws no random numbers."""
        if self.plan.launch == "eager":
            return
        device, generator = self.image_model.device, self.generator
        state = None if generator is None else generator.get_state()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for visible in (VISIBLE_MULTIPLE, self.capacity):  # what is compiled for these two serves all between
                self.step(visible)
                if self._captures:
                    with waits_are_errors():
                        self.step(visible)
                    self.run(visible)
        if generator is not None and state is not None:
            generator.set_state(state)

    def run(self, visible: int) -> None:
        """One pass, from its graph where there is one. After a capture failed it has none, unless `strict`. As `step`."""
        if visible in self.graphs:
            self.graphs[visible].replay()
            return
        self.step(visible)  # loads what it needs, which must not happen while capturing
        if not self._captures or (self._gave_up and not self.strict):
            return
        try:
            self.graphs[visible] = capture(
                lambda: self.step(visible), self.image_model.device, self._pool, self.generator
            )
        except CANNOT_RUN as error:
            if self.strict or isinstance(error, torch.OutOfMemoryError):
                raise
            self._gave_up = True
            warnings.warn(f"a pass could not be captured, and runs without a graph instead: {error}", stacklevel=2)

    def step(self, visible: int) -> None:
        """One pass: feeds W codes of each slot, and takes those that it decides. Nothing in it waits for the device.

        Args:
            visible: positions that attention looks at, a multiple of `VISIBLE_MULTIPLE`.
        """
        slots, window = self.slots, self.plan.window
        places = slots.places
        fed = slots.fed(places).flatten().repeat(2)
        start = (slots.prompt_tokens + places[:, 0]).flatten()
        embeddings, place = F.embedding(fed, self.weights.code_table), PassStart(start, self.weights.rotary, visible)
        states = self._run_blocks(embeddings, self.weights.blocks, self.keys_values, place, self.plan.layers)
        slots.accept(self._draw(states, slots.sampling, slots.seeds.repeat_interleave(window), (places + 1).flatten()))

    def _draw(self, hidden_states: Tensor, sampling: SamplingTensors, seeds: Tensor, position: Tensor) -> SampledCodes:
        head, backend = self.weights.head, self.plan.backend
        if self.plan.sampler == "gumbel":
            return sample_codes(hidden_states, head, sampling, seeds, position, backend)
        found = head_scores(hidden_states, head, sampling, backend)
        code = multinomial(found.scores, sampling.temperature, found.finite, self.generator)
        return SampledCodes(code, found.layer, found.jsd, found.finite)

    def serves(self, weights: Weights, *needs: object) -> bool:
        """Whether it is what these arguments would make, in the same order."""
        mine = self.plan, len(self.slots.seeds), self.capacity, self.generator
        return mine == needs and self.weights.lie_where(weights)
