"""Writes the options of `janus-dola generate` into file names: two pictures that differ have names that differ."""

import hashlib
import re
from collections.abc import Mapping

# Options that do not change a picture, or that its name shows in another way.
_ELSEWHERE = {
    "prompts", "outdir", "parallel_size", "backend", "launch", "window", "device", "image_format", "metadata", "from_image",
    "compare", "layer_map", "overwrite",
}  # fmt: skip
_LONGEST, _LONGEST_VALUE = 120, 32  # bytes of all, characters of one


def settings_named(values: Mapping[str, object], defaults: Mapping[str, object]) -> str:
    """Returns the options that decide what is drawn and differ from their defaults: "cfg-weight-3_no-dola".

    The text has at most 120 bytes: longer ones become a digest.
    """
    parts = []
    for name, default in defaults.items():
        value = values.get(name, default)
        if name in _ELSEWHERE or value == default:
            continue
        option = name.replace("_", "-")
        if name == "contrast" and value is None:
            parts.append("no-dola")
        elif isinstance(value, bool):
            parts.append(option if value else f"no-{option}")
        else:
            plain = re.sub(r"[^\w.+-]+", "_", str(value))  # letters that every disk takes
            parts.append(f"{option}-{plain[:_LONGEST_VALUE].strip('_')}")
    text = "_".join(parts)
    if len(text.encode()) <= _LONGEST:
        return text
    return f"settings-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"
