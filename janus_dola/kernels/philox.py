"""Counter-based randomness: Philox-4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3").

The noise of a code depends only on (image seed, token position, code id), so an image is the same alone or in any batch,
on any device and backend:

    key = (seed mod 2^32, seed div 2^32)      counter = (code div 4, position, 0, 0)      word = code mod 4
    u = word / 2^32                           G = -log(-log1p(-u)), standard Gumbel

Large G come from small u, where a float has its finest steps; this is why G is not formed as -log(-log(u)).
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

Words = TypeVar("Words", Tensor, "np.ndarray")  # int64

_HAS_NUMPY = find_spec("numpy") is not None  # torch itself runs without
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
WORD = 2.0**-32
SMALLEST_U, LARGEST_U = 2.0**-33, 1.0 - 2.0**-24  # keep both logarithms finite in float32
LOWEST_NOISE, HIGHEST_NOISE = -2.82, 22.88  # of u at both ends


def philox_4x32_10(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, ...]:
    """Computes ten rounds of Philox on broadcastable 32-bit words, [0, 2^32), held in int64 tensors or numpy's arrays."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # A product of two 32-bit words may wrap in int64; its 64 bits, and so both halves, stay right.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def random_words(seeds: Tensor, position: int | Tensor, num_codes: int) -> Tensor:
    """Returns the 32-bit word of each code: [B, V] int64 in [0, 2^32); arguments as for `gumbel_noise`."""
    quads = torch.arange((num_codes + 3) // 4, device=seeds.device)
    place = position.unsqueeze(1) if isinstance(position, Tensor) else position
    return _words_of(seeds.unsqueeze(1), place, quads.unsqueeze(0)).flatten(1)[:, :num_codes]


def _words_of(seeds: Tensor, position: int | Tensor, quads: Tensor) -> Tensor:
    """Returns the words of codes 4 quad .. 4 quad + 3: broadcastable [...] to [..., 4]."""
    zero = torch.zeros_like(quads)
    counter, key = (quads, zero + position, zero, zero), (seeds & _MASK, (seeds >> 32) & _MASK)
    words: tuple[Tensor, ...]
    if (
        seeds.device.type == "cpu" and _HAS_NUMPY
    ):  # numpy starts each of these 150 small operations in a third of the time
        c0, c1, c2, c3 = (word.numpy() for word in counter)
        words = tuple(map(torch.from_numpy, philox_4x32_10((c0, c1, c2, c3), (key[0].numpy(), key[1].numpy()))))
    else:
        words = philox_4x32_10(counter, key)
    return torch.stack(words, dim=-1)


def gumbel_noise(seeds: Tensor, position: int | Tensor, num_codes: int, needed: Tensor | None = None) -> Tensor:
    """Returns standard Gumbel noise per image and code, [B, V] float32, finite, in `LOWEST_NOISE` .. `HIGHEST_NOISE`.

    Args:
        seeds: [B] int64, one per image.
        position: where the token stands in its image, 0 .. T-1: [B] int64, or an int for all.
        num_codes: V.
        needed: [B, V] bool, the codes whose noise is read; that of others is left out where it can be, and 0. None: all.
    """
    device = seeds.device
    if device.type not in ("cpu", "cuda", "meta"):
        # Apple's GPUs computed integers wrong in silence (pytorch issues 147889, 154171, 190052): another image.
        place = position.cpu() if isinstance(position, Tensor) else position
        return gumbel_noise(seeds.cpu(), place, num_codes).to(device)
    if needed is None or device.type != "cpu":  # a GPU would have to say how many are needed
        return _gumbel(random_words(seeds, position, num_codes))
    quads = F.pad(needed, (0, -num_codes % 4)).unflatten(1, (-1, 4)).any(-1)
    image, quad = quads.nonzero(as_tuple=True)
    place = position[image] if isinstance(position, Tensor) else position
    noise = torch.zeros(*quads.shape, 4, dtype=torch.float32)
    noise[image, quad] = _gumbel(_words_of(seeds[image], place, quad))
    return noise.flatten(1)[:, :num_codes]


def _gumbel(words: Tensor) -> Tensor:
    u = (words.to(torch.float32) * WORD).clamp(SMALLEST_U, LARGEST_U)
    return -torch.log(-torch.log1p(-u))
