"""Digests by which a run tells what it wrote itself and nobody changed since: BLAKE2b of 16 bytes, as hexadecimal digits."""

import hashlib
import json
from pathlib import Path
from typing import Any

_OWN = "checksum"  # the key under which an object of JSON holds the digest of its other keys
_BYTES = 16
_CHUNK = 2**20


def digest(content: bytes) -> str:
    """Of some bytes; `b2sum -l 128` gives the same."""
    return hashlib.blake2b(content, digest_size=_BYTES).hexdigest()


def file_digest(path: Path) -> str | None:
    """Of a file; None where there is none that can be read."""
    found = hashlib.blake2b(digest_size=_BYTES)
    try:
        if not path.is_file():  # a pipe would wait
            return None
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                found.update(piece)
    except OSError:
        return None
    return found.hexdigest()


def with_checksum(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, and a digest of them in the place of an older one."""
    others = {key: value for key, value in fields.items() if key != _OWN}
    return {**others, _OWN: _checksum(others)}


def checked(text: bytes) -> dict[str, Any] | None:
    """The fields of an object of JSON that `with_checksum` made; None for anything else, an edited one too."""
    try:
        fields = json.loads(text)
        return fields if isinstance(fields, dict) and fields.pop(_OWN) == _checksum(fields) else None
    except (ValueError, KeyError, RecursionError):
        return None


def _checksum(fields: dict[str, Any]) -> str:
    return digest(json.dumps(fields, ensure_ascii=False, sort_keys=True).encode("utf-8"))
