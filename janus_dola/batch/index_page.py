"""Writes `index.html`, to look at a folder's images in a browser with their prompts, seeds, layer maps and failures.

The page is static and opens from disk. What it shows lies beside it in `index_data.js`; only what is in view becomes an
element.
"""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from janus_dola.batch.folder import PARTIAL
from janus_dola.batch.manifest import Manifest
from janus_dola.images.layer_map import colour_of_layer, css, css_ramp
from janus_dola.images.whole_files import sync_folder, write_whole

PAGE, DATA = "index.html", "index_data.js"
_LAST_KEYS = ("file", "map", "mean_jsd", "max_jsd", "layers", "error")  # of a row, as page.html reads it
_HEAD = 400  # bytes in which our files differ from others
_IN_PAGE, _IN_DATA = b"<title>janus-dola batch</title>", b"const SETTINGS = "


def write_page(outdir: Path, manifest: Manifest, settings: dict[str, Any]) -> None:
    """Writes the page and its data, among them the run's settings by name."""
    page = files("janus_dola.batch").joinpath("page.html").read_bytes()
    write_whole(outdir / DATA, _data(manifest, settings), partial=outdir / PARTIAL)
    write_whole(outdir / PAGE, page, partial=outdir / PARTIAL)
    sync_folder(outdir)


def is_of_page(path: Path) -> bool:
    """Returns whether a file in the place of the page, or its data, is one that `write_page` wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return (_IN_DATA if path.name == DATA else _IN_PAGE) in file.read(_HEAD)


def _data(manifest: Manifest, settings: dict[str, Any]) -> Iterator[bytes]:
    """Yields JavaScript, a row per line of the manifest. Images in a row give their prompt once; each look comes once."""
    yield f"const SETTINGS = {_js(settings)};\nconst ROWS = [\n".encode()
    looks, layers, before = dict[str, int](), set[int](), None
    for entry in manifest:
        here = (entry["index"], entry.get("prompt"))
        if entry.get("max_jsd"):  # otherwise nothing was contrasted
            layers.update(map(int, entry["layers"]))
        prompt = 0 if here == before else entry.get("prompt")
        look = looks.setdefault(_js(entry.get("settings")), len(looks))
        row = [*map(entry.get, ("index", "k", "id")), prompt, entry.get("seed"), look, *map(entry.get, _LAST_KEYS)]
        yield f"{_js(row)},\n".encode()
        before = here
    colours = {layer: css(colour_of_layer(layer)) for layer in sorted(layers)}
    yield f"];\nconst LOOKS = [{', '.join(looks)}];\nconst COLOURS = {_js(colours)}, RAMP = {_js(css_ramp())};\n".encode()


def _js(value: object) -> str:
    # A seed that is larger than the integers that JavaScript counts with becomes text.
    safe = json.loads(json.dumps(value), parse_int=lambda digits: int(digits) if abs(int(digits)) < 2**53 else digits)
    return json.dumps(safe, ensure_ascii=False, separators=(",", ":"))
