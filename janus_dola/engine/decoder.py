"""The decoder: admits images to slots, and runs passes, each of which draws codes in every slot.

A pass launches the same kernels each time (but for how far attention looks), reads all it needs from device memory and
leaves everything there, so that it can be captured in a CUDA graph.
"""

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from janus_dola.engine.devices import capture, capturing, has_graphs, upload
from janus_dola.engine.jobs import Job
from janus_dola.engine.plan import Plan
from janus_dola.engine.slots import Slots
from janus_dola.kernels.block import CANNOT_RUN, resolve_blocks
from janus_dola.kernels.block_torch import PassStart, buffer_shape, run_whole
from janus_dola.kernels.head import head_scores, sample_codes
from janus_dola.kernels.sampling import log_probabilities, multinomial
from janus_dola.kernels.types import SampledCodes, SamplingParams, SamplingTensors
from janus_dola.models.eval_copy import in_eval_mode
from janus_dola.models.model import ImageModel
from janus_dola.models.weights import Weights

# Attention looks at multiples of 64 positions: few different shapes, and few unwritten positions are read.
VISIBLE_MULTIPLE = 64
_PROMPTS_KEPT = 4  # each with all its rows


def visible_length(written: int) -> int:
    """Rounds positions up to a multiple that attention looks at."""
    return -(-written // VISIBLE_MULTIPLE) * VISIBLE_MULTIPLE


@dataclass(frozen=True)
class DecoderKey:
    """What a decoder is built for: a call with an equal key can use it again, and its graphs."""

    plan: Plan
    slots: int  # S, images at a time
    capacity: int  # positions of prompt, image and guesses together, at most
    generator: torch.Generator | None = None  # draws for the sampler "multinomial"; None is torch's global one


def keys_values_shape(weights: Weights, key: DecoderKey) -> torch.Size:
    """Returns the shape for a decoder's keys and values, [N, R, capacity, 2, H_kv, d]."""
    return torch.Size(buffer_shape(weights.blocks, key.plan.rows * key.slots, key.capacity))


class Decoder:
    """Draws codes for S images at a time. `params`, any with the plan's kind, fill the slots until images begin there.

    Its keys and values take the first numbers of `buffer` [n], finite, and its graphs memory from `pool`; None are its own.
    """

    def __init__(
        self,
        image_model: ImageModel,
        weights: Weights,
        key: DecoderKey,
        params: SamplingParams,
        buffer: Tensor | None = None,
        pool: Any = None,
    ) -> None:
        self.image_model, self.weights, self.key = image_model, weights, key
        plan = self.plan = key.plan
        self.capacity = key.capacity
        shape = keys_values_shape(weights, key)
        if buffer is None:
            buffer = torch.zeros(shape.numel(), dtype=image_model.dtype, device=image_model.device)
        self.keys_values = buffer[: shape.numel()].view(shape)
        layers = torch.tensor([*plan.layers, image_model.num_layers], device=image_model.device)
        sampling = SamplingTensors.repeat(params, key.slots * plan.window, self.keys_values)
        self.slots = Slots(key.slots, image_model.raster, plan.window, layers, sampling, plan.backend == "triton")
        self._run_blocks = resolve_blocks(plan.backend, weights.blocks, plan.window, plan.launch == "compile")
        self.prompts: OrderedDict[tuple[tuple[int, ...], ...], list[tuple[Tensor, Tensor]]] = OrderedDict()
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}  # passes by visible length, captured when first needed
        self._captures = plan.launch != "eager" and has_graphs(image_model.device)
        self._pool = torch.cuda.graph_pool_handle() if pool is None and self._captures else pool
        self._gave_up = False

    def admit(self, slots: Sequence[int], jobs: Sequence[Job]) -> None:
        """Begins images in these slots: runs prompts that are new, and draws the first codes."""
        device, hidden_states, lengths = self.image_model.device, [], []
        prompts = [self._prompt(tuple(map(tuple, job.rows))) for job in jobs]
        for side, rows in enumerate(zip(*prompts, strict=True)):
            for slot, (keys_values, last) in zip(slots, rows, strict=True):
                row, length = self.keys_values[:, side * self.key.slots + slot], keys_values.shape[1]
                row[:, :length] = keys_values
                row[:, length:] = 0  # masked positions must be finite
                hidden_states.append(last)
                lengths.append(length)
        seeds = upload([job.seed for job in jobs], device)
        sampling = SamplingTensors.of([job.params for job in jobs], self.slots.jsd)
        first = self._draw(torch.stack(hidden_states, 1), sampling, seeds, torch.zeros_like(seeds))
        self.slots.admit(upload(slots, device), upload(lengths, device), seeds, sampling, first)

    def _prompt(self, rows: tuple[tuple[int, ...], ...]) -> list[tuple[Tensor, Tensor]]:
        """Returns each row's keys and values [N, S, 2, H, d], and its last hidden states [L, D] in the layers read.

        An image's rows run together where they are equally long, so that weights are read once; never with those of other
        images, on which they would depend; and once, as long as they are used.
        """
        if rows not in self.prompts:
            weights, one_length = self.weights, len(set(map(len, rows))) == 1
            states_of_rows: list[tuple[Tensor, Tensor]] = []
            for together in [rows] if one_length else [[row] for row in rows]:
                ids = upload([token for row in together for token in row], self.image_model.device)
                embeddings = in_eval_mode(self.image_model.embed_text)(ids).unflatten(0, (len(together), -1))
                keys_values, states = run_whole(embeddings, weights.blocks, weights.rotary, self.plan.layers)
                states_of_rows += zip(keys_values.unbind(1), states[:, :, -1].clone().unbind(1), strict=True)
            self.prompts[rows] = states_of_rows
            if len(self.prompts) > _PROMPTS_KEPT:
                self.prompts.popitem(last=False)
        self.prompts.move_to_end(rows)
        return self.prompts[rows]

    def try_out(self) -> None:
        """Runs passes over empty slots, if not eager, so that a failure to compile or capture them comes now.

        Draws no random numbers.
        """
        if self.plan.launch == "eager":
            return
        device, generator = self.image_model.device, self.key.generator
        state = None if generator is None else generator.get_state()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            # Compiled for the shortest and the longest view, a pass serves all between.
            for visible in sorted({VISIBLE_MULTIPLE, self.capacity}):
                with capturing:
                    self.step(visible)
                    if self._captures:
                        self._capture(visible)
        if generator is not None and state is not None:
            generator.set_state(state)

    def rest(self) -> None:
        """Forgets what only this call needs; the next one may try again to capture what could not be captured."""
        self.prompts.clear()
        self._gave_up = False

    def run(self, visible: int) -> None:
        """Runs a pass as `step` does, by its graph if there is one; otherwise captures one for the next pass like it.

        If that fails, it warns once, and this call captures no further graphs; but no memory is an OutOfMemoryError.
        """
        if visible in self.graphs:
            self.graphs[visible].replay()
        elif self._gave_up or not self._captures:
            self.step(visible)
        else:
            with capturing:
                self.step(visible)
                try:
                    self._capture(visible)
                except torch.OutOfMemoryError:
                    raise
                except CANNOT_RUN as error:
                    self._gave_up = True
                    message = f"a pass could not be captured, and runs without a graph instead: {error}"
                    warnings.warn(message, stacklevel=2)

    def _capture(self, visible: int) -> None:
        device = self.image_model.device
        self.graphs[visible] = capture(lambda: self.step(visible), device, self._pool, self.key.generator)

    def step(self, visible: int) -> None:
        """Runs a pass: feeds W codes per slot, and accepts the codes that it decides. Nothing in it waits for the device.

        Attention looks at the first `visible` positions, from `visible_length`.
        """
        slots, weights = self.slots, self.weights
        fed = slots.feed(weights.code_table)
        place = PassStart(fed.start, weights.rotary, visible, slots.prompt_tokens.flatten())
        states = self._run_blocks(fed.embeddings, weights.blocks, self.keys_values, place, self.plan.layers)
        slots.accept(self._draw(states, slots.sampling, fed.seeds, fed.position))

    def _draw(self, hidden_states: Tensor, sampling: SamplingTensors, seeds: Tensor, position: Tensor) -> SampledCodes:
        head, backend = self.weights.head, self.plan.backend
        if self.plan.lens is not None:
            hidden_states = self.plan.lens(hidden_states, self.plan.layers)
        if self.plan.sampler == "gumbel":
            return sample_codes(hidden_states, head, sampling, seeds, position, backend)
        scores = head_scores(hidden_states, head, sampling, backend)
        code = multinomial(scores.scores, sampling.temperature, scores.finite, self.key.generator)
        log_prob = log_probabilities(scores.scores, sampling.temperature, code)
        return SampledCodes(code, scores.layer, scores.jsd, scores.finite, log_prob)
