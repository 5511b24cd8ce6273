"""Libraries that only parts of the package need."""

import importlib
from types import ModuleType


def import_extra(module: str, extra: str, what: str) -> ModuleType:
    """Imports `module`.

    Args:
        extra: the extra of janus-dola that brings it.
        what: for the error: what needs it.
    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name != module.split(".")[0]:
            raise
        raise ValueError(f"{what} needs {missing.name}: pip install 'janus-dola[{extra}]'") from None
