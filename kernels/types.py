"""What goes into the early-exit stage and what comes out.

Letters: L layers, R rows, B images, D hidden size, E head width, V codes.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from janus_dola.kernels.packed import PackedHalf

SMALLEST_TEMPERATURE = 1e-6
MAX_TOP_K = 2**31 - 1


def check_alpha(alpha: float) -> None:
    """Raises ValueError where the plausibility threshold lies outside [0, 1]."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")


def log_of(alpha: float) -> float:
    """log alpha; -inf for 0."""
    return math.log(alpha) if alpha > 0 else -math.inf


@dataclass(frozen=True)
class Head:
    """The weights every layer is read out with: LN_out (RMSNorm), then phi.

    Janus' image head is phi = Linear -> GELU (exact) -> Linear. Text models have a single Linear: leave the projection out,
    and E is D. All tensors are contiguous and share one dtype and device; packed weights go with float32 on a CPU.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
    """

    norm_weight: Tensor  # [D]
    norm_eps: float
    code_weight: Tensor | PackedHalf  # [V, E]
    code_bias: Tensor | None = None  # [V]
    proj_weight: Tensor | PackedHalf | None = None  # [E, D]
    proj_bias: Tensor | None = None  # [E], given with proj_weight

    def __post_init__(self) -> None:
        if (self.proj_weight is None) != (self.proj_bias is None):
            missing, given = ("proj_weight", "proj_bias") if self.proj_weight is None else ("proj_bias", "proj_weight")
            raise ValueError(f"{missing} must be given with {given}, got None")
        codes, width = self.code_weight.shape
        hidden = width if self.proj_weight is None else self.proj_weight.shape[1]
        expected = {
            "code_weight": [codes, width],
            "norm_weight": [hidden],
            "proj_weight": [width, hidden],
            "proj_bias": [width],
            "code_bias": [codes],
        }
        for name, shape in expected.items():
            weight = getattr(self, name)
            if weight is None:
                continue
            if isinstance(weight, Tensor) and not weight.is_contiguous():
                raise ValueError(f"{name} must be contiguous, got strides {weight.stride()}")
            if list(weight.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {list(weight.shape)}")
            if (weight.dtype, weight.device) != (self.code_weight.dtype, self.code_weight.device):
                raise ValueError(
                    f"{name} must be {self.code_weight.dtype} on {self.code_weight.device} like code_weight, "
                    f"got {weight.dtype} on {weight.device}"
                )

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.norm_weight.shape[0]

    @property
    def num_codes(self) -> int:
        """V."""
        return self.code_weight.shape[0]


@dataclass(frozen=True)
class Decoding:
    """How a token is chosen from the stack of layers.

    Attributes:
        cfg_weight: w of classifier-free guidance, finite. None: there is none, and every row is an image of its own.
        temperature: T, at least 1e-6, or 0 for greedy: with less the scores' last bits would decide, not the noise.
        alpha: threshold of the adaptive plausibility constraint, in [0, 1]; 0 admits every code.
        premature: index into the stack of the layer to contrast with; None takes the one with the largest JSD, and the
            index of the last (the final layer) means no contrast.
        top_k: codes to draw from, the most probable ones; 0 for all.
        top_p: share of softmax(F / T) that the codes drawn from hold, in (0, 1]; 1 for all. See `reference.truncate`.

    Raises:
        ValueError: a value is out of range.
    """

    cfg_weight: float | None = 5.0
    temperature: float = 1.0
    alpha: float = 0.1
    premature: int | None = None
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.cfg_weight is not None and not math.isfinite(self.cfg_weight):
            raise ValueError(f"cfg_weight must be a finite number, got {self.cfg_weight}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a finite number >= 0 (0 is greedy), got {self.temperature}")
        if 0 < self.temperature < SMALLEST_TEMPERATURE:
            raise ValueError(
                f"temperature must be 0 (greedy) or at least {SMALLEST_TEMPERATURE}, got {self.temperature}"
            )
        check_alpha(self.alpha)
        if not 0 <= self.top_k <= MAX_TOP_K:
            raise ValueError(f"top_k must be an int in 0 .. {MAX_TOP_K} (0 keeps all), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")

    @property
    def truncates(self) -> bool:
        """Whether some plausible codes are not drawn."""
        return self.top_k > 0 or self.top_p < 1

    @property
    def kind(self) -> Hashable:
        """What of it decides which kernels run: images of one kind can share a pass."""
        return self.cfg_weight is None, self.truncates

    def images(self, rows: int) -> int:
        """B of so many rows R: a conditional and an unconditional one make an image, where there is guidance."""
        return rows if self.cfg_weight is None else rows // 2

    def repeated(self, images: int, like: Tensor) -> "Decodings":
        """The same for so many images, on the device of a tensor and as precise as its arithmetic."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32

        def full(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((images,), value, dtype=dtype, device=like.device)

        return Decodings(
            None if self.cfg_weight is None else full(self.cfg_weight, dtype),
            full(self.temperature, dtype),
            full(log_of(self.alpha), dtype),
            full(BY_JSD if self.premature is None else self.premature, torch.int64),
            full(self.top_k, torch.int64) if self.truncates else None,
            full(self.top_p, dtype) if self.truncates else None,
        )


BY_JSD = -1  # in place of an index: the layer with the largest JSD


@dataclass(frozen=True)
class Decodings:
    """`Decoding` of B images as tensors, so that images of different settings share a pass, and a graph reads them anew."""

    cfg_weight: Tensor | None  # [B] float32 (float64 for float64 hidden states); None: no guidance for any image
    temperature: Tensor  # [B], the same dtype
    log_alpha: Tensor  # [B], the same dtype; -inf admits every code
    premature: Tensor  # [B] int64: index into the stack, the last for no contrast; or `BY_JSD`
    top_k: Tensor | None = None  # [B] int64, 0 for all codes. None: nothing is truncated for any image, nor by `top_p`
    top_p: Tensor | None = None  # [B], the dtype of the temperature; 1 for all codes

    @classmethod
    def of(cls, decodings: Sequence[Decoding], like: Tensor) -> "Decodings":
        """Guided settings of images of one kind, on the device of a float32 or float64 tensor, without waiting for it."""
        dtype, device = like.dtype, like.device

        def column(values: list, dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)

        truncates = any(each.truncates for each in decodings)
        return cls(
            column([each.cfg_weight for each in decodings], dtype),
            column([each.temperature for each in decodings], dtype),
            column([log_of(each.alpha) for each in decodings], dtype),
            column([BY_JSD if each.premature is None else each.premature for each in decodings], torch.int64),
            column([each.top_k for each in decodings], torch.int64) if truncates else None,
            column([each.top_p for each in decodings], dtype) if truncates else None,
        )

    def put(self, slots: Tensor, others: "Decodings", window: int) -> None:
        """Images of the same kind take the place of those in some slots, whose settings stand here `window` times each.

        Args:
            slots: [n] int64, of [B / window].
            others: of n images.
        """
        for field in fields(self):
            mine, new = getattr(self, field.name), getattr(others, field.name)
            if (mine is None) != (new is None):
                raise ValueError(f"images must be of one kind: {field.name} is None for some of them")
            if mine is not None:
                mine.view(-1, window)[slots] = new.unsqueeze(1)


@dataclass(frozen=True)
class Scores:
    """The contrasted distribution of each image, before temperature."""

    scores: Tensor  # [B, V] float32 (float64 for float64 input), F; -inf outside V_head and what `top_k`, `top_p` leave
    layer: Tensor  # [B] int64, index into the stack of the layer contrasted with
    jsd: Tensor  # [B], its Jensen-Shannon divergence from the final layer, nats
    finite: Tensor  # [B] bool, False where hidden states or logits were not finite

    @property
    def p_hat(self) -> Tensor:
        """[B, V], sums to 1 in each row."""
        return self.scores.softmax(-1)


@dataclass(frozen=True)
class EarlyExit:
    """One decoded token per image."""

    code: Tensor  # [B] int64
    layer: Tensor  # [B] int64, as in Scores
    jsd: Tensor  # [B]
    finite: Tensor  # [B] bool
