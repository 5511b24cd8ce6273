"""Slots: an image being drawn is one, and all there is to know of it lies on the device.

The codes of an image solve x_t = f_t(x_<t), where f_t adds the noise of the image's seed at t. A pass feeds W codes, the
last one decided and W - 1 guesses, and gets f of each. Guesses that turn out to be what f gives were fed with a right
prefix, and so was the first code after them: between one and W codes are decided, and the same for any W and any guesses.
What ends a line of some models stands among the codes, is always guessed right, and is left out in the end.
(Fixed-point iteration with reparametrised noise: Wiggers and Hoogeboom, ICML 2020, arXiv 2002.09928.)
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from janus_dola.kernels.types import SampledCodes, SamplingTensors
from janus_dola.models.model import Raster


@dataclass(frozen=True)
class Codes:
    """The codes of an image, and what DoLa did at each. T image tokens."""

    tokens: Tensor  # [T] int64
    premature_layers: Tensor  # [T] int64, the layer contrasted with; N where there was no contrast
    jsd: Tensor  # [T], its divergence from the final layer in nats; 0 where there was no contrast
    finite: Tensor  # [] bool, False where hidden states or logits were not finite at some token
    passes: Tensor  # [] int64, after that of the prompt

    def cpu(self) -> "Codes":
        """The same on the CPU."""
        return Codes(*(getattr(self, field.name).cpu() for field in fields(self)))


class Slots:
    """S slots, whose images have T' positions each. A pass feeds W codes of every slot.

    An empty slot is one whose image is done: it is fed all the same, and nothing comes of it.
    """

    def __init__(self, slots: int, raster: Raster, window: int, layers: Tensor, sampling: SamplingTensors):
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=layers.device)

        self.window, self._raster = window, raster
        self._layer_numbers = layers  # of the stack
        positions = raster.length + 2 * window  # guesses go beyond an image's end
        self.seeds = zeros()
        self.prompt_tokens = torch.stack([zeros() + 1] * 2)  # [2, S], of both rows
        self.decided = zeros() + raster.length  # how many positions are
        self.passes = zeros()
        self.sampling = sampling  # [S * W], an image's repeated for each code fed
        self.tokens = zeros(positions)  # decided codes, then guesses
        self.layers = zeros(positions)  # indices into the stack
        self.jsd = zeros(positions, dtype=sampling.temperature.dtype)
        self.finite = zeros(dtype=torch.bool)
        self._ahead = torch.arange(window, device=layers.device)
        self._codes = raster.places.to(layers.device)

    def admit(
        self, slots: Tensor, lengths: Tensor, seeds: Tensor, sampling: SamplingTensors, first: SampledCodes
    ) -> None:
        """Images begin in these slots with their first code, which the prompt gave. All [n] int64; lengths [2n]."""
        self.sampling.put(slots, sampling, self.window)
        self.seeds[slots] = seeds
        self.prompt_tokens[:, slots] = lengths.view(2, -1)
        self.decided[slots] = 1
        self.passes[slots] = 0
        self.tokens[slots] = first.code.unsqueeze(1)  # and the first guesses
        self.layers[slots, 0] = first.layer
        self.jsd[slots, 0] = first.jsd
        self.finite[slots] = first.finite

    @property
    def places(self) -> Tensor:
        """Of the codes fed next, in their images: [S, W]."""
        return self.decided.unsqueeze(1) - 1 + self._ahead

    def fed(self, places: Tensor) -> Tensor:
        """The codes at these places, decided or guessed."""
        return self._raster.with_line_ends(places, self.tokens.gather(1, places))

    def accept(self, found: SampledCodes) -> None:
        """Takes what a pass found of the W codes fed to each slot; fields are [S * W]."""
        places = self.places
        fed = self.fed(places)
        code, layer, jsd, finite = (getattr(found, field.name).view(fed.shape) for field in fields(found))
        code = self._raster.with_line_ends(places + 1, code)
        right = (fed[:, 1:] == code[:, :-1]).long().cumprod(1).sum(1) + 1
        accepted = torch.minimum(right, self._raster.length - self.decided)
        self.finite &= (finite | (self._ahead >= accepted.unsqueeze(1))).all(1)
        # What was not accepted stays as the next guess; behind the window the code above is one.
        self.tokens.scatter_(1, places + 1, self._corrected(fed, code, accepted) if self.window > 1 else code)
        self.layers.scatter_(1, places + 1, layer)
        self.jsd.scatter_(1, places + 1, jsd)
        behind = places + 1 + self.window
        self.tokens.scatter_(1, behind, self.tokens.gather(1, (behind - self._raster.stride).clamp(min=0)))
        self.passes += accepted > 0
        self.decided += accepted

    def _corrected(self, fed: Tensor, code: Tensor, accepted: Tensor) -> Tensor:
        """Codes whose guesses went on with the first wrong guess go on with what stands in its place: [S, W]."""
        accepted = accepted.unsqueeze(1)
        wrong = fed.gather(1, accepted.clamp(max=self.window - 1))
        right = code.gather(1, (accepted - 1).clamp(min=0))
        rejected = self._ahead >= accepted
        goes_on = ((code == wrong) | ~rejected).long().cumprod(1).bool() & rejected
        return torch.where(goes_on, right, code)

    def codes(self, slot: int) -> Codes:
        """Of the image in a slot; the next one there does not change them."""
        tokens, layers, jsd = (each[slot][self._codes] for each in (self.tokens, self.layers, self.jsd))
        return Codes(tokens, self._layer_numbers[layers], jsd, self.finite[slot].clone(), self.passes[slot].clone())
