"""Holds what drawing returns: images with their codes, what DoLa did at each code, and the recipe that draws them again."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from janus_dola.arguments import ImageFormat, shown
from janus_dola.images.files import file_name, refuse_existing, write_all, write_new
from janus_dola.images.layer_map import columns_of, layer_map
from janus_dola.images.recipe import CODES, Recipe, encode_codes, encode_image
from janus_dola.models.contexts import undisturbed


class NonFiniteError(RuntimeError):
    """Hidden states, logits or pixels of some images were NaN or infinite.

    Attributes:
        images: indices of the images, counted over all prompts.
        drawn: the other images, if the caller gets all images at once.
    """

    def __init__(self, images: list[int], drawn: Sequence["DrawnImage"] = ()) -> None:
        super().__init__(
            f"hidden states, logits or pixels became NaN or infinite for image(s) {images}, counted over all prompts. "
            "float16 overflows in some Janus checkpoints: try dtype bfloat16 or float32"
        )
        self.images, self.drawn = images, list(drawn)


@dataclass(frozen=True, repr=False)
class DrawnImage:
    """One image. T image tokens; tensors are on the CPU."""

    prompt: int  # index of its prompt
    k: int  # which of the prompt's images
    picture: Image.Image | None  # RGB; None where another model paints the codes
    tokens: Tensor  # [T] int64, the codes in raster order
    premature_layers: Tensor  # [T] int64, the layer contrasted with; N (the final layer) where there was no contrast
    # [T] float32 (float64 if the model is), that layer's Jensen-Shannon divergence from the final layer, in [0, ln 2] nats
    jsd: Tensor
    # [T], in the same dtype, nats: log softmax(F / T) of each code, the distribution that it was drawn from; 0 at T = 0
    log_probs: Tensor
    seed: int  # -1 for torch's global generator
    passes: int  # model passes after the prompt's; T - 1 if each decides one code
    recipe: Recipe  # prompt and settings
    candidate_layers: tuple[int, ...] = ()  # layers that were compared with the final one
    from_seed: bool = True  # whether the recipe draws it again; the sampler "multinomial" does not
    # What another model that paints takes, by name; for a GLM-Image "prior_token_ids", [1, 4 rows columns] int64
    painter_inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Writes the image, with its recipe inside if the recipe draws it again, as `janus-dola again` does.

        Args:
            path: ends with .jpg, .png, .webp or, for its codes in place of pixels, .safetensors: "tokens", and
                `painter_inputs`.
            overwrite: whether an existing file is replaced.
        Returns:
            the path.
        Raises:
            FileExistsError: the file exists, and `overwrite` is not set; or a link is there.
            OSError: it cannot be written; an older one is untouched.
            ValueError: another ending, or a prompt that is too long for the format (JPEG: 64 kB).
        """
        path = Path(path)
        content = self.encoded(path.suffix[1:])
        refuse_existing([path], overwrite)
        write_new(path, content, overwrite)
        return path

    def encoded(self, image_format: str, metadata: bool = True) -> bytes:
        """Returns what `save` writes into a file of a format, by `metadata` with the recipe; errors are as there."""
        recipe = self.recipe if self.from_seed and metadata else None
        if image_format == CODES:
            return encode_codes(self.tokens, self.painter_inputs, recipe)
        return encode_image(self.image, cast(ImageFormat, image_format), recipe)

    @property
    def image(self) -> Image.Image:
        """Returns the image, RGB; a ValueError where another model paints the codes."""
        if self.picture is None:
            raise ValueError("this model draws codes, which another one paints: save them as .safetensors")
        return self.picture

    @undisturbed()
    def layer_map(self) -> Image.Image:
        """Draws the image beside maps of the layer chosen at each code and of its JSD, with prompt, seed and settings."""
        layers, chosen = self.candidate_layers, self.premature_layers
        return layer_map(self.image, chosen, self.jsd, layers, self.recipe.prompt, self.recipe.summary())

    @undisturbed()
    def __repr__(self) -> str:
        return (
            f"DrawnImage(prompt {self.prompt} {shown(self.recipe.prompt)}, k={self.k}, {_sizes(self)}, "
            f"{self.recipe.summary()}, mean JSD {self.jsd.mean():.3g} nats, {self.passes} passes)"
        )


@dataclass(frozen=True, repr=False)
class GenerationOutput:
    """Holds what `JanusDoLa.generate` drew: P prompts, K images per prompt, T image tokens; tensors are on the CPU."""

    drawn: list[list[DrawnImage]]  # [P][K]

    @cached_property
    def images(self) -> list[list[Image.Image]]:
        """Returns the images, [P][K] RGB; a ValueError where another model paints the codes."""
        return [[each.image for each in row] for row in self.drawn]

    @cached_property
    def tokens(self) -> Tensor:
        """Returns the codes in raster order, [P, K, T] int64."""
        return self._stacked("tokens")

    @cached_property
    def premature_layers(self) -> Tensor:
        """Returns the layers contrasted with, [P, K, T] int64; N (the final layer) where there was no contrast."""
        return self._stacked("premature_layers")

    @cached_property
    def jsd(self) -> Tensor:
        """Returns these layers' Jensen-Shannon divergences from the final layer, [P, K, T] float32, in [0, ln 2] nats."""
        return self._stacked("jsd")

    @cached_property
    def log_probs(self) -> Tensor:
        """Returns log softmax(F / T) of each code, the distribution that it was drawn from, [P, K, T] float32, nats."""
        return self._stacked("log_probs")

    @cached_property
    def seeds(self) -> Tensor:
        """Returns the seed that draws each image again, [P, K] int64; -1 for torch's global generator."""
        return self._stacked("seed")

    @cached_property
    def passes(self) -> Tensor:
        """Returns the model passes of each image after the prompt's, [P, K] int64; T - 1 if each decides one code."""
        return self._stacked("passes")

    def save(self, folder: str | Path, image_format: ImageFormat = "png", overwrite: bool = False) -> list[Path]:
        """Writes every image with its recipe inside, as `{prompt index}_{words of the prompt}_p{k}.{format}`.

        Args:
            folder: made if it is not there.
            image_format: "jpg", "png", "webp" or, for codes in place of pixels, "safetensors".
            overwrite: whether existing files are replaced.
        Returns:
            the files, prompt by prompt.
        Raises:
            FileExistsError: a file exists and `overwrite` is not set, or a link or a folder is there. Nothing is written.
            OSError: a file cannot be written; says which were written before it. No file is left in part, and an older one
                with its name is untouched.
            ValueError: another format, or a prompt that is too long for it (JPEG: 64 kB).
        """
        folder = Path(folder)
        files = []
        for each in itertools.chain(*self.drawn):
            fields = {"index": each.prompt, "words": each.recipe.prompt, "k": each.k}
            files.append((each, folder / file_name(fields, image_format)))
        refuse_existing([path for _, path in files], overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        return write_all(((path, each.encoded(image_format)) for each, path in files), overwrite)

    def layer_map(self, i: int = 0, k: int = 0) -> Image.Image:
        """Draws `DrawnImage.layer_map` for image k of prompt i."""
        return self.drawn[i][k].layer_map()

    @undisturbed()
    def __repr__(self) -> str:
        first, seeds = self.drawn[0][0], self.seeds.flatten().tolist()
        in_a_row = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
        named = str(seeds[0]) if len(set(seeds)) == 1 else f"{seeds[0]}..{seeds[-1]}" if in_a_row else _list(seeds)
        return (
            f"GenerationOutput(P={len(self.drawn)}, K={len(self.drawn[0])}, {_sizes(first)}, seeds {named}, "
            f"{first.recipe.settings.summary()}, mean JSD {self.jsd.mean():.3g} nats, "
            f"{self.passes.float().mean():.4g} passes an image)"
        )

    @undisturbed()
    def _stacked(self, name: str) -> Tensor:
        return torch.stack([torch.stack([torch.as_tensor(getattr(each, name)) for each in row]) for row in self.drawn])


def _sizes(drawn: DrawnImage) -> str:
    image, codes = drawn.picture, len(drawn.tokens)
    if image is None:
        return f"{codes} codes"
    columns = columns_of(codes, image)
    return f"{image.width}x{image.height} pixels, {columns}x{codes // columns} codes"


def _list(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds[:4])) + (", ..." if len(seeds) > 4 else "")
