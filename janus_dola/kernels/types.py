"""What goes into the head stage and what comes out.

Letters: L layers, R rows, B images, D hidden size, E head width, V codes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from janus_dola.kernels.packed import Packed
from janus_dola.kernels.params import SamplingParams


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
    code_weight: Tensor | Packed  # [V, E]
    code_bias: Tensor | None = None  # [V]
    proj_weight: Tensor | Packed | None = None  # [E, D]
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
        """Returns D."""
        return self.norm_weight.shape[0]

    @property
    def num_codes(self) -> int:
        """Returns V."""
        return self.code_weight.shape[0]


@dataclass(frozen=True)
class SamplingTensors:
    """`SamplingParams` for B images as tensors: images with different settings share a pass, and a graph reads them anew."""

    method: str  # the same for all images
    contrast: dict[str, Tensor]  # the method's own numbers, [B] each: int64, or the dtype of the temperature
    cfg_weight: Tensor | None  # [B] float32 (float64 for float64 hidden states); None: no guidance for any image
    temperature: Tensor  # [B], the same dtype
    # Both None where no image leaves codes out.
    top_k: Tensor | None = None  # [B] int64, 0 for all codes
    top_p: Tensor | None = None  # [B], the dtype of the temperature; 1 for all codes

    @property
    def rows(self) -> int:
        """Returns how many rows an image has, as `SamplingParams.rows` says."""
        return 1 if self.cfg_weight is None else 2

    @property
    def truncates(self) -> bool:
        """Returns whether top-k or top-p may leave out codes of an image."""
        return self.top_k is not None

    @classmethod
    def repeat(cls, params: SamplingParams, images: int, like: Tensor) -> "SamplingTensors":
        """Repeats one image's numbers `images` times, on the device of `like` and in the precision of its arithmetic."""

        def full(values: list[float], dtype: torch.dtype) -> Tensor:
            return torch.full((images,), values[0], dtype=dtype, device=like.device)

        return cls._from([params], full, torch.float64 if like.dtype == torch.float64 else torch.float32)

    @classmethod
    def of(cls, params: Sequence[SamplingParams], like: Tensor) -> "SamplingTensors":
        """Collects the numbers of images of one kind beside a float32 or float64 tensor, on CUDA without a wait."""

        def column(values: list[float], dtype: torch.dtype) -> Tensor:
            on_cuda = like.device.type == "cuda"  # elsewhere a copy that does not wait may go wrong in silence
            pinned = torch.tensor(values, dtype=dtype, device="cpu", pin_memory=on_cuda)
            return pinned.to(like.device, non_blocking=on_cuda)

        return cls._from(params, column, like.dtype)

    @classmethod
    def _from(
        cls, params: Sequence[SamplingParams], tensor: Callable[[list[float], torch.dtype], Tensor], dtype: torch.dtype
    ) -> "SamplingTensors":
        first, truncates = params[0], any(each.truncates for each in params)
        weights = [each.cfg_weight for each in params if each.cfg_weight is not None]
        contrast = {
            name: tensor([each.contrast[name] for each in params], torch.int64 if isinstance(number, int) else dtype)
            for name, number in first.contrast.items()
        }
        return cls(
            first.method,
            contrast,
            tensor(weights, dtype) if weights else None,
            tensor([each.temperature for each in params], dtype),
            tensor([each.top_k for each in params], torch.int64) if truncates else None,
            tensor([each.top_p for each in params], dtype) if truncates else None,
        )

    def flat(self) -> dict[str, Tensor]:
        """Returns all tensors by name, the method's own among them; absent ones are left out."""
        own = {name: getattr(self, name) for name in _OWN}
        return {name: tensor for name, tensor in {**own, **self.contrast}.items() if tensor is not None}

    @classmethod
    def from_flat(cls, method: str, tensors: dict[str, Tensor]) -> "SamplingTensors":
        """Restores what `flat` took apart."""
        contrast = {name: tensor for name, tensor in tensors.items() if name not in _OWN}
        return cls(method, contrast, **{name: tensors.get(name) for name in _OWN})  # type: ignore[arg-type]

    def put(self, slots: Tensor, others: "SamplingTensors", window: int) -> None:
        """Overwrites the settings of slots [n], in 0 .. B / window - 1, each of which stands here `window` times.

        Raises:
            ValueError: the n images are of another kind.
        """
        if self.method != others.method:
            raise ValueError(f"images must be of one kind: {self.method} for some of them, {others.method} for others")
        tensors, replaced = self.flat(), others.flat()
        if different := sorted(tensors.keys() ^ replaced.keys()):
            raise ValueError(f"images must be of one kind: {different[0]} is None for some of them")
        for name, tensor in tensors.items():
            tensor.view(-1, window)[slots] = replaced[name].unsqueeze(1)


_OWN = tuple(each.name for each in fields(SamplingTensors))[2:]  # all but `method` and `contrast`


@dataclass(frozen=True)
class Scores:
    """The contrasted scores of each image, before temperature."""

    scores: Tensor  # [B, V] float32 (float64 for float64 input), F; -inf for codes that are not drawn
    layer: Tensor  # [B] int64, index into the stack of the layer contrasted with
    jsd: Tensor  # [B], its Jensen-Shannon divergence from the final layer, nats
    finite: Tensor  # [B] bool, False where hidden states or logits were not finite


@dataclass(frozen=True)
class SampledCodes:
    """The code drawn for each image, and its log-probability; the rest as in `Scores`."""

    code: Tensor  # [B] int64
    layer: Tensor
    jsd: Tensor
    finite: Tensor
    log_prob: Tensor  # [B], log softmax(F / T) of the code in nats, in the dtype of jsd; 0 at T = 0
