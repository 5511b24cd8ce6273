"""A lens: an affine map of an early layer's hidden states, behind which the head reads it as if it were the final layer.

    h_j + U_j D_j h_j + b_j        each layer j that has one, before LN_out

(Belrose et al. 2023, arXiv 2303.08112, there with a full matrix for U_j D_j.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from janus_dola.kernels.block_torch import Matrix


@dataclass(frozen=True)
class LayerLens:
    """The map of one layer. Letters: D hidden size, K rank."""

    down: Matrix  # D to K, without a bias
    up: Matrix  # K to D

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Maps rows [R, D] to [R, D]."""
        return self.up.added_to(hidden_states, self.down(hidden_states))


@dataclass(frozen=True, eq=False)
class Lens:
    """Maps by layer, counted as in Hugging Face's `hidden_states`."""

    layers: Mapping[int, LayerLens]
    digest: str = ""  # tells lenses apart

    def __call__(self, hidden_states: Tensor, layers: Sequence[int]) -> Tensor:
        """Maps the hidden states of `layers`, [L, R, D] with the final layer last, which stays as it is; in their dtype."""
        *early, final = hidden_states.unbind(0)
        return torch.stack([*(self.layers[j](each) for j, each in zip(layers, early, strict=True)), final])
