"""Slots: each holds an image being drawn, on the device.

The codes of an image solve x_t = f_t(x_<t), where f_t adds the seed's noise at t. A pass feeds W codes, the last one decided
and W - 1 guesses, and computes f after each. A guess that equals f's value was fed after a right prefix, and so was the
first code behind it: a pass decides between one and W codes, and the same ones for any W and any guesses.

An example with W = 4, where x_0 .. x_9 are decided and a, b, c are the guesses for positions 10, 11, 12:

    fed          x_9   a     b     c
    f after it   a     p     q     r

f after x_9 is a, so the first guess was right. f after a is p and not b, so b is the first wrong guess and p replaces it.
Two codes are accepted: a and p, for positions 10 and 11. q and r came after a wrong prefix. They are the next guesses for
positions 12 and 13, but where they begin by repeating the wrong b they become p.

Some models end each line with a fixed token. It stands among the codes, is always guessed right, and is left out in the end.
(Fixed-point iteration with reparametrised noise: Wiggers and Hoogeboom, ICML 2020, arXiv 2002.09928.)
"""

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_dola.kernels.types import SampledCodes, SamplingTensors
from janus_dola.models.model import Raster


@dataclass(frozen=True)
class Codes:
    """An image's codes, and what DoLa did at each. T image tokens."""

    tokens: Tensor  # [T] int64
    premature_layers: Tensor  # [T] int64, the layer contrasted with; N where there was no contrast
    jsd: Tensor  # [T], that layer's divergence from the final one in nats; 0 where there was no contrast
    log_probs: Tensor  # [T], log-probabilities of the codes in nats
    finite: Tensor  # [] bool, False if hidden states or logits were not finite at some token
    passes: Tensor  # [] int64, number of passes after the prompt's
    slots: int  # S
    window: int  # W

    def cpu(self) -> "Codes":
        """Copies everything to the CPU."""
        tensors: dict[str, Any] = {name: value.cpu() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


class Fed(NamedTuple):
    """What a pass is fed. R rows, D hidden size; the conditional rows come first."""

    embeddings: Tensor  # [R * W, D]
    start: Tensor  # [R] int64, each row's first new position
    seeds: Tensor  # [S * W] int64
    position: Tensor  # [S * W] int64, where the code that is drawn after it stands in its image


class Slots:
    """S slots, whose images have T' positions each. A pass feeds W codes per slot.

    A slot is empty if its image is done. It is fed all the same, at its row's first positions, and nothing comes of it.
    Where `fused`, on a GPU, feeding and accepting are a kernel each.
    """

    def __init__(
        self, slots: int, raster: Raster, window: int, layers: Tensor, sampling: SamplingTensors, fused: bool = False
    ):
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=layers.device)

        self.window, self._raster, self._kernels = window, raster, None
        if fused:
            from janus_dola.kernels.gpu import feeding

            self._kernels, self._lines = feeding, (raster.stride, raster.columns, raster.line_end)
        self._nowhere = 1 - raster.length  # stands for a prompt's length in an empty slot: it is fed at position 0
        self._layer_numbers = layers  # [L], by index into the stack
        positions = raster.length + 2 * window  # guesses go beyond an image's end
        self.seeds = zeros()
        # [rows, S], lengths of each image's rows
        self.prompt_tokens = torch.stack([zeros() + self._nowhere] * sampling.rows)
        self.decided = zeros() + raster.length  # [S], number of decided positions
        self.passes = zeros()
        self.sampling = sampling  # [S * W], each image's numbers repeated for the W codes fed
        self.tokens = zeros(positions)  # decided codes, then guesses
        self.layers = zeros(positions)  # indices into the stack
        self.jsd, self.log_probs = (zeros(positions, dtype=sampling.temperature.dtype) for _ in range(2))
        self.finite = zeros(dtype=torch.bool)
        self._ahead = torch.arange(window, device=layers.device)
        self._first_guesses = raster.first_guesses(positions).to(layers.device)
        self._code_places = raster.places.to(layers.device)

    def admit(
        self, slots: Tensor, lengths: Tensor, seeds: Tensor, sampling: SamplingTensors, first: SampledCodes
    ) -> None:
        """Begins n images in the slots [n] with their first codes; `lengths` [rows * n] are those of the prompts' rows."""
        self.sampling.put(slots, sampling, self.window)
        self.seeds[slots] = seeds
        self.prompt_tokens[:, slots] = lengths.view(self.sampling.rows, -1)
        self.decided[slots] = 1
        self.passes[slots] = 0
        self.tokens[slots] = first.code.unsqueeze(1)  # and the first guesses
        self.layers[slots, 0] = first.layer
        self.jsd[slots, 0] = first.jsd
        self.log_probs[slots, 0] = first.log_prob
        self.finite[slots] = first.finite

    def leave(self, slot: int) -> None:
        """Empties a slot."""
        self.decided[slot] = self._raster.length
        self.prompt_tokens[:, slot] = self._nowhere

    @property
    def places(self) -> Tensor:
        """Returns where in its image each code that is fed next stands: [S, W]."""
        return self.decided.unsqueeze(1) - 1 + self._ahead

    def fed(self, places: Tensor) -> Tensor:
        """Returns the codes, decided or guessed, at places [S, W]."""
        return self._raster.with_line_ends(places, self.tokens.gather(1, places))

    def feed(self, code_table: Tensor) -> Fed:
        """Looks up what a pass is fed, with the embeddings of codes [V, D]."""
        if self._kernels is not None:
            state = (self.tokens, self.decided, self.prompt_tokens, self.seeds)
            return Fed(*self._kernels.feed(*state, code_table, self.window, *self._lines))
        places = self.places
        embeddings = F.embedding(self.fed(places).flatten().repeat(self.sampling.rows), code_table)
        start = (self.prompt_tokens + places[:, 0]).flatten()
        return Fed(embeddings, start, self.seeds.repeat_interleave(self.window), (places + 1).flatten())

    def accept(self, sampled: SampledCodes) -> None:
        """Accepts the codes that a pass decides, of f after each code fed [S * W], and keeps the others as guesses."""
        if self._kernels is not None:
            state = (self.tokens, self.layers, self.jsd, self.log_probs, self.decided, self.passes, self.finite)
            drawn, length = tuple(vars(sampled).values()), self._raster.length
            self._kernels.accept(drawn, *state, self._first_guesses, self.window, length, *self._lines)
            return
        places = self.places
        fed = self.fed(places)
        codes, layers, jsd, finite, log_probs = (
            getattr(sampled, field.name).view(fed.shape) for field in fields(sampled)
        )
        codes = self._raster.with_line_ends(places + 1, codes)
        # The right guesses up to the first wrong one, and the code behind them; nothing beyond the image's end.
        num_right = (fed[:, 1:] == codes[:, :-1]).long().cumprod(1).sum(1) + 1
        num_accepted = torch.minimum(num_right, self._raster.length - self.decided)
        self.finite &= (finite | (self._ahead >= num_accepted.unsqueeze(1))).all(1)
        self.tokens.scatter_(1, places + 1, self._next_guesses(fed, codes, num_accepted) if self.window > 1 else codes)
        self.layers.scatter_(1, places + 1, layers)
        self.jsd.scatter_(1, places + 1, jsd)
        self.log_probs.scatter_(1, places + 1, log_probs)
        # Behind the window, a code drawn before is the guess, such as the one above.
        behind = places + 1 + self.window
        self.tokens.scatter_(1, behind, self.tokens.gather(1, self._first_guesses[behind]))
        self.passes += num_accepted > 0
        self.decided += num_accepted

    def _next_guesses(self, fed: Tensor, codes: Tensor, num_accepted: Tensor) -> Tensor:
        """Returns `codes` [S, W], where a run that goes on from the first wrong guess goes on with its replacement."""
        num_accepted = num_accepted.unsqueeze(1)
        first_wrong_guess = fed.gather(1, num_accepted.clamp(max=self.window - 1))
        replacement = codes.gather(1, (num_accepted - 1).clamp(min=0))
        rejected = self._ahead >= num_accepted
        in_run = ((codes == first_wrong_guess) | ~rejected).long().cumprod(1).bool() & rejected
        return torch.where(in_run, replacement, codes)

    def codes(self, slot: int) -> Codes:
        """Returns the codes in a slot; the next image there does not change them."""
        of_codes = self.tokens, self.layers, self.jsd, self.log_probs
        tokens, layers, jsd, log_probs = (each[slot][self._code_places] for each in of_codes)
        finite, passes = self.finite[slot].clone(), self.passes[slot].clone()
        return Codes(tokens, self._layer_numbers[layers], jsd, log_probs, finite, passes, len(self.seeds), self.window)
