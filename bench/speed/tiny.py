"""Makes every benchmark small enough for a test: all code that is timed is run once, on a CPU, at sizes that say nothing.

pytest bench/speed --tiny --benchmark-disable
"""

from functools import partial

import pytest

from bench.speed import cases, floor, models, test_generation, test_pieces, test_text
from bench.speed.widened import widened
from janus_dola.kernels import packed

CODES, SIDE, IMAGES = 512, 2, 2
_BLOCK = floor.BlockShape("tiny", hidden=192, number=8, heads=6, inner=512)  # the least that holds the mini model


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Replaces the sizes of all heads, blocks and models until `patch` is undone."""
    for name, shape in floor.SHAPES.items():
        width = None if shape.width is None else _BLOCK.hidden
        patch.setitem(floor.SHAPES, name, floor.HeadShape(_BLOCK.hidden, width, CODES))
    for name in floor.BLOCKS:
        patch.setitem(floor.BLOCKS, name, _BLOCK)
    for name in test_text.SHAPES:
        patch.setitem(test_text.SHAPES, name, (_BLOCK, _BLOCK.heads, CODES))
    for name in models.MODELS:
        patch.setitem(models.MODELS, name, partial(widened, "1B", 8, SIDE))
    for module, name, value in (
        (test_pieces, "CODES", CODES), (test_generation, "CUT", SIDE), (cases, "MOST", 1),
        (packed, "has_amx", lambda: False),  # a GPU's cases in bfloat16 are compiled
    ):  # fmt: skip
        patch.setattr(module, name, value)


def cover(table: dict[str, dict[str, dict]]) -> dict[str, dict]:
    """Returns cases in which each value of each argument stands at least once, of a benchmark's cases for all devices."""
    seen: set[tuple[str, object]] = set()
    chosen = {}
    for rows in table.values():
        for name, row in rows.items():
            row = row | {key: min(row[key], IMAGES) for key in ("images", "sequences") if key in row}
            row = {
                key: value.replace("graph", "eager") if isinstance(value, str) else value for key, value in row.items()
            }
            if not seen.issuperset(row.items()):
                seen.update(row.items())
                chosen[name] = row
    return chosen
