"""What goes into the head stage and what comes out.

Letters: L layers, R rows, B images, D hidden size, E head width, V codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from janus_dola.kernels.packed import PackedHalf
from janus_dola.kernels.params import SamplingParams, log_of


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


BY_JSD = -1  # in place of an index: the layer with the largest JSD


@dataclass(frozen=True)
class SamplingTensors:
    """`SamplingParams` of B images as tensors: images of different settings share a pass, and a graph reads them anew."""

    cfg_weight: Tensor | None  # [B] float32 (float64 for float64 hidden states); None: no guidance for any image
    temperature: Tensor  # [B], the same dtype
    log_alpha: Tensor  # [B], the same dtype; -inf admits every code
    premature: Tensor  # [B] int64: index into the stack, the last for no contrast; or `BY_JSD`
    top_k: Tensor | None = None  # [B] int64, 0 for all codes. None: nothing is truncated for any image, nor by `top_p`
    top_p: Tensor | None = None  # [B], the dtype of the temperature; 1 for all codes

    @classmethod
    def repeat(cls, params: SamplingParams, images: int, like: Tensor) -> "SamplingTensors":
        """One for so many images, on the device of a tensor and as precise as its arithmetic."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32

        def full(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((images,), value, dtype=dtype, device=like.device)

        return cls(
            None if params.cfg_weight is None else full(params.cfg_weight, dtype),
            full(params.temperature, dtype),
            full(log_of(params.alpha), dtype),
            full(BY_JSD if params.premature is None else params.premature, torch.int64),
            full(params.top_k, torch.int64) if params.truncates else None,
            full(params.top_p, dtype) if params.truncates else None,
        )

    @classmethod
    def of(cls, sampling: Sequence[SamplingParams], like: Tensor) -> "SamplingTensors":
        """Guided settings of images of one kind, on the device of a float32 or float64 tensor, without waiting for it."""
        dtype, device = like.dtype, like.device

        def column(values: list, dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)

        truncates = any(each.truncates for each in sampling)
        return cls(
            column([each.cfg_weight for each in sampling], dtype),
            column([each.temperature for each in sampling], dtype),
            column([log_of(each.alpha) for each in sampling], dtype),
            column([BY_JSD if each.premature is None else each.premature for each in sampling], torch.int64),
            column([each.top_k for each in sampling], torch.int64) if truncates else None,
            column([each.top_p for each in sampling], dtype) if truncates else None,
        )

    def put(self, slots: Tensor, others: "SamplingTensors", window: int) -> None:
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
class SampledCodes:
    """One decoded token per image."""

    code: Tensor  # [B] int64
    layer: Tensor  # [B] int64, as in Scores
    jsd: Tensor  # [B]
    finite: Tensor  # [B] bool
