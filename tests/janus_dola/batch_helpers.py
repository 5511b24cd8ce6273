"""What the tests of batch runs share."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from janus_dola import DrawnImage, GenerationOutput, JanusDoLa
from janus_dola.images.recipe import Recipe

SHAPES = [
    f"a {size} {colour} {shape}"
    for size in ("large", "small")
    for colour in ("red", "blue", "green")
    for shape in ("circle", "square", "cross")
]


class FastPipe(JanusDoLa):
    """The mini model, but for the drawing: each image is a surface of the colour that its seed gives."""

    def generate(self, prompts, parallel_size, settings, *, seed, backend, launch, window, max_images):
        if settings.contrast is not None:
            settings.contrast.layers_to_read(self.image_model.num_layers)
        images = [
            DrawnImage(
                i,
                0,
                Image.new("RGB", (8, 8), (each % 251, each // 251 % 251, 7)),
                torch.zeros(4, dtype=torch.int64),
                torch.tensor([2, 4, 6, 8]),
                torch.tensor([0.1, 0.2, 0.3, 0.0]),
                torch.tensor([-1.0, -0.5, 0.0, 0.0]),
                each,
                passes=4,
                recipe=Recipe("mini", prompts[i], each, settings, "float32"),
            )
            for i, each in enumerate(seed)
        ]
        return GenerationOutput([[image] for image in images])


def lines(outdir: Path) -> list[dict]:
    """The manifest."""
    text = (outdir / "manifest.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def without_seconds(outdir: Path) -> list[dict]:
    """The manifest without what differs between runs."""
    return [{key: value for key, value in line.items() if key not in ("seconds", "checksum")} for line in lines(outdir)]


def pictures(outdir: Path) -> dict[str, bytes]:
    """Every image and layer map of a folder."""
    return {
        str(path.relative_to(outdir)): path.read_bytes()
        for path in sorted(outdir.rglob("*"))
        if path.suffix in (".jpg", ".png", ".webp")
    }


def assert_equal_but_for_rounding(result: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Images are the same bytes, and layers of maps; a level of a JSD may move by one, as the last bits of a float32 do."""
    assert result.keys() == expected.keys()
    for name, content in result.items():
        if not name.startswith("maps/"):
            assert content == expected[name], name
            continue
        mine, other = (np.asarray(Image.open(io.BytesIO(png))).astype(int) for png in (content, expected[name]))
        side = mine.shape[0]
        assert np.abs(mine[:, side:] - other[:, side:]).max() <= 1, name
        assert (mine[:, :side] == other[:, :side]).all(), name
