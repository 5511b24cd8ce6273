"""What the files of images are called: as always, or by a template of the user."""

import re
import unicodedata
from collections.abc import Mapping

from janus_dola.image_files import STUB_LENGTH, ImageFormat, file_name, stub

FIELDS = ("words", "id", "index", "k", "number", "seed")
_TEXTS = ("words", "id")
_FIELD = re.compile(r"\{([^{}]*)\}")
_BETWEEN = re.compile(r"[A-Za-z0-9_. -]{0,16}")  # with the longest fields a name has at most 255 bytes


def check_template(template: str | None) -> None:
    """Raises ValueError where names cannot be made by a template. None is none."""
    if template is None:
        return
    if not isinstance(template, str):
        raise ValueError(f"name_template must be None or a string, got {template!r}")
    fields, between = _FIELD.findall(template), _FIELD.sub("", template)
    unknown = next((name for name in fields if name not in FIELDS), None)
    if unknown is not None or len(set(fields)) < len(fields) or not fields:
        listed = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise ValueError(f"name_template must hold some of {listed}, each once, got {template[:80]!r}")
    if not _BETWEEN.fullmatch(between) or template[0] in " .-":
        raise ValueError(
            "name_template must have at most 16 letters of ASCII, digits, '_', '-', '.' and blanks around its fields, "
            f"and begin with none of the last three, got {template[:80]!r}"
        )


def name_of(template: str | None, fields: Mapping[str, str | int], image_format: ImageFormat) -> str:
    """The name of an image's file; safe for any prompt and id, of which it keeps letters and digits.

    Args:
        fields: words (the prompt), id, index, k, number and seed.
    """
    if template is None:
        return file_name(int(fields["index"]), str(fields["words"]), int(fields["k"]), image_format)
    room = STUB_LENGTH // max(1, sum(name in _TEXTS for name in _FIELD.findall(template)))

    def value(found: re.Match[str]) -> str:
        name = found.group(1)
        return stub(str(fields[name]), room) if name in _TEXTS else str(fields[name])

    return f"{_FIELD.sub(value, template)}.{image_format}"


class Distinct:
    """Names, of which no two are one file, on a disk that tells capitals apart or not. Keeps some 60 bytes a name."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def add(self, name: str) -> None:
        """Raises ValueError where another has that name."""
        key = hash(unicodedata.normalize("NFC", name).casefold())
        if key in self._seen:
            raise ValueError(f"name_template must tell all images apart, but two are {name}: add {{number}}")
        self._seen.add(key)
