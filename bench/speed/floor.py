"""How fast a case can possibly be: the bytes it must move and the operations it must do, over what the GPU is capable of."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class HeadShape:
    """Sizes of an output head: hidden size D, width E (None: a single matrix), codes V."""

    hidden: int
    width: int | None
    codes: int


SHAPES = {
    "mini": HeadShape(192, 192, 512),
    "1B": HeadShape(2048, 2048, 16384),  # the image head of Janus-Pro-1B
    "7B": HeadShape(4096, 4096, 16384),  # of Janus-Pro-7B
    "2048 x 4096": HeadShape(2048, None, 4096),  # one matrix, with as many codes as the second number says
    "2048 x 16384": HeadShape(2048, None, 16384),
    "2048 x 65536": HeadShape(2048, None, 65536),
    "GLM-Image": HeadShape(4096, None, 16384),
    "text 8B": HeadShape(4096, None, 128256),  # the language head of an 8B text model
}


@dataclass(frozen=True)
class BlockShape:
    """Sizes of a language model's blocks: hidden size, blocks, query heads, width of the MLP; and how they are made."""

    name: str
    hidden: int
    number: int
    heads: int
    inner: int
    groups: int = 1  # query heads that share a head of keys
    # As in GLM-Image: biases of queries, keys and values, norms behind attention and MLP, half of each head rotated, by
    # positions counted from an image's first code; no guidance.
    glm: bool = False

    @property
    def head_size(self) -> int:
        """Returns d."""
        return self.hidden // self.heads

    @property
    def rows(self) -> int:
        """Returns how many rows an image has: two with guidance."""
        return 1 if self.glm else 2

    @property
    def keys(self) -> int:
        """Returns how many numbers keys have, and values."""
        return self.hidden // self.groups

    @property
    def rotated(self) -> int:
        """Returns how many numbers of each head are rotated."""
        return self.head_size // 2 if self.glm else self.head_size


BLOCKS = {
    "1B": BlockShape("1B", 2048, 24, 16, 5632),
    "7B": BlockShape("7B", 4096, 30, 32, 11008),
    "GLM-Image": BlockShape("GLM-Image", 4096, 40, 32, 13696, groups=16, glm=True),
}


@dataclass(frozen=True)
class Work:
    """What a case needs at the least: each input read once, each output written once, each product made once."""

    bytes: int
    operations: int

    def seconds(self, bytes_per_second: float, operations_per_second: float) -> float:
        """Returns the floor: the longer of moving and computing."""
        return max(self.bytes / bytes_per_second, self.operations / operations_per_second)


def normalise(shape: HeadShape, layers: int, images: int, dtype: torch.dtype) -> Work:
    """Counts the final norm: reads hidden states [L, 2B, D], writes as many, or [L, B, D] if guidance follows."""
    pairs = layers * images
    written = pairs if shape.width is None else 2 * pairs
    return Work((2 * pairs + written) * shape.hidden * dtype.itemsize, 0)


def project(shape: HeadShape, layers: int, images: int, dtype: torch.dtype) -> Work:
    """Counts projection and guidance: reads W1 [E, D] and normalised rows [L, 2B, D], writes y [L, B, E]."""
    if shape.width is None:
        return Work(0, 0)
    pairs, weights = layers * images, shape.width * shape.hidden
    moved = weights + 2 * pairs * shape.hidden + pairs * shape.width
    return Work(moved * dtype.itemsize, 2 * weights * 2 * pairs)


def codebook(shape: HeadShape, layers: int, images: int, dtype: torch.dtype) -> Work:
    """Counts the last Linear: reads W2 [V, E] and x [L, B, E], writes float32 logits [L, B, V]."""
    pairs = layers * images
    width = shape.hidden if shape.width is None else shape.width
    weights = shape.codes * width
    return Work((weights + pairs * width) * dtype.itemsize + pairs * shape.codes * 4, 2 * weights * pairs)


def sweep(shape: HeadShape, layers: int, images: int) -> Work:
    """Counts JSD, choice of layer and sampling: reads float32 logits [L, B, V] once."""
    return Work(layers * images * shape.codes * 4, 0)


def head_stage(
    shape: HeadShape, layers: int, images: int, dtype: torch.dtype, stored: torch.dtype | None = None
) -> Work:
    """Counts hidden states in and codes out: weights are read once; what lies between may stay in the cache.

    `stored` is the dtype of the weights, where they are packed in another than that of the hidden states.
    """
    pairs = layers * images
    width = shape.hidden if shape.width is None else shape.width
    projection = 0 if shape.width is None else width * shape.hidden
    weights = projection + shape.codes * width
    moved = weights * (stored or dtype).itemsize + 2 * pairs * shape.hidden * dtype.itemsize
    return Work(moved, 2 * (projection * 2 + shape.codes * width) * pairs)


def decode_pass(
    weights: int,
    key_values: int,
    shape: HeadShape,
    layers: int,
    images: int,
    window: int,
    dtype: torch.dtype,
    stored: torch.dtype | None = None,
    rows: int = 2,
) -> Work:
    """Counts a whole pass: blocks' weights once, visible keys and values, and what the head stage reads.

    Args:
        weights: numbers in the blocks.
        key_values: numbers in the visible keys and values of one row, all blocks.
        shape, layers, dtype, stored: of the head stage.
        window: codes fed for each image.
        rows: of an image.
    """
    head, rows = head_stage(shape, layers, images * window, dtype, stored), rows * images
    moved = weights * (stored or dtype).itemsize + rows * key_values * dtype.itemsize
    return Work(moved + head.bytes, 2 * rows * window * (weights + key_values) + head.operations)
