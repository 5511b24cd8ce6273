"""Trains lenses: maps of early layers, behind which the model's own head says nearly what it says of the final layer.

The loss of layer j is KL(q_N || q_j), on hidden states of images that the model drew itself. Nothing else is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_dola.arguments import integer, number
from janus_dola.kernels import reference
from janus_dola.kernels.types import Head

_HELD_OUT = 10  # of so many positions one is left out of training, to measure the loss with


@dataclass(frozen=True)
class LensSettings:
    """How lenses are trained.

    Attributes:
        rank: K, of each layer's matrix; at most the hidden size.
        steps, batch_size, learning_rate: of Adam; the rate falls to 0 along a cosine.
        seed: of the start and of the order of positions.
    Raises:
        ValueError: a value is out of range.
    """

    rank: int = 64
    steps: int = 700
    batch_size: int = 1024
    learning_rate: float = 6e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "steps", "batch_size"):
            integer(name, getattr(self, name), 1, 2**20)
        integer("seed", self.seed, 0, 2**31 - 1)
        if not 0 < number("learning_rate", self.learning_rate) <= 1:
            raise ValueError(f"learning_rate must lie in (0, 1], got {self.learning_rate:g}")


class LensTraining:
    """Lenses being trained on hidden states.

    Letters: L - 1 early layers, n positions, D hidden size, K rank.

    Args:
        hidden_states: [L, n, D] in any floating dtype, before the final norm; the final layer last.
        head: the model's, which does not change.
        settings: as `LensSettings` says.
    """

    def __init__(self, hidden_states: Tensor, head: Head, settings: LensSettings) -> None:
        self._states, self._head, self._settings = hidden_states, head, settings
        layers, _, hidden = hidden_states.shape
        device, rank = head.norm_weight.device, min(settings.rank, hidden)
        generator = torch.Generator().manual_seed(settings.seed)
        # Trained on states divided by their size, so that one learning rate fits every layer of every model.
        self._size = torch.stack([states.float().square().mean().sqrt() for states in hidden_states[:-1]])
        down = torch.randn(layers - 1, rank, hidden, generator=generator) * hidden**-0.5
        zeros = torch.zeros(layers - 1, hidden, rank), torch.zeros(layers - 1, 1, hidden)
        self._maps = [each.to(device).requires_grad_() for each in (down, *zeros)]
        self._optimizer = torch.optim.Adam(self._maps, settings.learning_rate)
        self.step = 0

    def run(self, until: int, progress: Callable[[], object] = lambda: None) -> None:
        """Trains up to a number of steps in all, at most those of the settings."""
        settings = self._settings
        training = torch.arange(self._states.shape[1])
        training = training[training % _HELD_OUT > 0]
        while self.step < min(until, settings.steps):
            generator = torch.Generator().manual_seed(settings.seed * 2**32 + self.step)
            chosen = training[torch.randint(len(training), (settings.batch_size,), generator=generator)]
            for group in self._optimizer.param_groups:
                group["lr"] = settings.learning_rate * _falling(self.step / settings.steps)
            with torch.enable_grad():
                loss = self._divergence(chosen, self._maps).sum()
            self._optimizer.zero_grad()
            loss.backward(inputs=self._maps)  # no gradient is left in the model
            self._optimizer.step()
            self.step += 1
            progress()

    def divergence(self, trained: bool = True) -> list[float]:
        """Returns each layer's mean KL(q_N || q_j) at the positions held out, nats, with its lens or without."""
        maps = [each.detach() for each in self._maps] if trained else None
        held_out = torch.arange(0, self._states.shape[1], _HELD_OUT)
        with torch.no_grad():
            parts = [self._divergence(part, maps) * len(part) for part in held_out.split(self._settings.batch_size)]
        return (torch.stack(parts).sum(0) / len(held_out)).tolist()

    def maps(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Returns each layer's down [K, D], up [D, K] and bias [D], float32 on the CPU."""
        down, up, bias = (each.detach().cpu() for each in self._maps)
        return [(d, u, b[0] * size) for d, u, b, size in zip(down, up, bias, self._size.cpu(), strict=True)]

    def state(self) -> dict[str, Any]:
        """Returns what `restore` goes on from."""
        return {
            "step": self.step,
            "maps": [each.detach().cpu() for each in self._maps],
            "adam": self._optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` returned, of a training with the same settings and states."""
        for own, saved in zip(self._maps, state["maps"], strict=True):
            own.data.copy_(saved)
        self._optimizer.load_state_dict(state["adam"])
        self.step = state["step"]

    def _divergence(self, chosen: Tensor, maps: list[Tensor] | None) -> Tensor:
        """Returns each layer's mean KL at these positions: [L - 1]."""
        states = self._states[:, chosen].to(self._head.norm_weight.device).float()
        early, final = states[:-1], states[-1]
        if maps is not None:
            (down, up, bias), size = maps, self._size.to(early.device)[:, None, None]
            x = early / size
            early = size * (x + torch.baddbmm(bias, x @ down.mT, up.mT))
        with torch.no_grad():
            log_q = self._log_q(final)
        return torch.stack(
            [F.kl_div(self._log_q(each), log_q, reduction="batchmean", log_target=True) for each in early]
        )

    def _log_q(self, hidden_states: Tensor) -> Tensor:
        head = self._head
        normed = reference.rms_norm(hidden_states, head.norm_weight, head.norm_eps)
        return reference.apply_head(normed, head).log_softmax(-1)


def _falling(done: float) -> float:
    return 0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * done)).item()
