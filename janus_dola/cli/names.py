"""What `janus-dola generate` calls its files: so that what differs in a picture differs in its name."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from janus_dola.arguments import ImageFormat
from janus_dola.settings import OF_DOLA

# Options that leave a picture as it is, or stand in its name by other means.
_ELSEWHERE = {
    "prompts",
    "outdir",
    "parallel_size",
    "backend",
    "launch",
    "window",
    "device",
    "image_format",
    "metadata",
    "from_image",
    "compare",
    "layer_map",
    "overwrite",
}
_LONGEST_NAME, _LONGEST_SETTINGS, _LONGEST_VALUE = 230, 120, 32  # of the 255 bytes of a name


def settings_named(values: Mapping[str, object], defaults: Mapping[str, object]) -> list[str]:
    """The options that decide what is drawn and are not what they are by default: ["cfg-weight-3", "no-dola"].

    Args:
        values, defaults: of all options of the command, by name.
    """
    found = []
    for name, default in defaults.items():
        value = values.get(name, default)
        if name in _ELSEWHERE or value == default or (name in OF_DOLA and not values["dola"]):
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(option if value else f"no-{option}")
        else:
            found.append(f"{option}-{_plain(str(value))}")
    return found


def _plain(value: str) -> str:
    """The beginning of a text, in letters that every disk takes."""
    return re.sub(r"[^\w.+-]+", "_", value)[:_LONGEST_VALUE].strip("_")


def path_of(outdir: Path, index: int, words: str, settings: Sequence[str], k: int, image_format: ImageFormat) -> Path:
    """`{index}_{words}_p{k}`, with the settings before the last part where there are some.

    Args:
        words: the letters and digits that the prompt begins with.
    """
    told = "_".join(settings)
    if len(told.encode()) > _LONGEST_SETTINGS:
        told = f"settings-{hashlib.blake2b(told.encode(), digest_size=6).hexdigest()}"
    end = f"{'_' if told else ''}{told}_p{k}.{image_format}"
    room = _LONGEST_NAME - len(f"{index}_{end}".encode())
    return outdir / f"{index}_{words.encode()[:room].decode(errors='ignore')}{end}"
