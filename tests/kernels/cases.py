"""Random inputs of the early-exit stage, shared by the kernel tests."""

import torch
from hypothesis import strategies as st

from janus_dola.kernels.types import Head

# Absolute tolerances against the float64 oracle on the same inputs (design: JSD 1e-4; p_hat 1e-2 in 16 bits, 1e-5 in fp32).
JSD_TOLERANCE = 1e-4
TOTAL_VARIATION = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}


def random_head(hidden: int, width: int, codes: int, dtype: torch.dtype, seed: int, sharpness: float = 1.0) -> Head:
    """A head whose logits have a standard deviation of about `sharpness`."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return (torch.randn(*shape, generator=g) * scale).to(dtype)

    return Head(
        norm_weight=(torch.rand(hidden, generator=g) + 0.5).to(dtype),
        norm_eps=1e-6,
        proj_weight=normal(width, hidden, scale=hidden**-0.5),
        proj_bias=normal(width, scale=0.1),
        code_weight=normal(codes, width, scale=1.7 * sharpness * width**-0.5),
        code_bias=normal(codes, scale=0.1),
    )


def random_hidden(layers: int, images: int, hidden: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """[L, 2B, D]: layers and the two rows of an image resemble each other, as in a model."""
    g = torch.Generator().manual_seed(seed + 1)
    common = torch.randn(1, 1, hidden, generator=g)
    drift = 0.3 * torch.randn(layers, 1, hidden, generator=g).cumsum(0)
    return (3 * (common + drift + 0.5 * torch.randn(layers, 2 * images, hidden, generator=g))).to(dtype)


def to(head: Head, dtype: torch.dtype) -> Head:
    """The same weights in another dtype."""
    weights = {name: getattr(head, name) for name in Head.__dataclass_fields__ if name != "norm_eps"}
    return Head(norm_eps=head.norm_eps, **{name: weight.to(dtype) for name, weight in weights.items()})


def total_variation(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """1/2 sum |p - q| of two sets of scores, [...]."""
    return 0.5 * (log_p.double().softmax(-1) - log_q.double().softmax(-1)).abs().sum(-1)


# Sizes that are not multiples of anything, and single-element ones.
shapes = st.fixed_dictionaries(
    {
        "layers": st.integers(2, 6),
        "images": st.integers(1, 5),
        "hidden": st.sampled_from([1, 7, 32, 65]),
        "width": st.sampled_from([1, 9, 48]),
        "codes": st.sampled_from([1, 2, 33, 257, 1000]),
    }
)
