"""Weights of the language model's blocks in 8 bits, by torchao: less to read at each token, other tokens now and then."""

import importlib.util
from typing import get_args

from janus_dola.choices import Quantization
from janus_dola.models.parts import JanusParts

QUANTIZATIONS = get_args(Quantization)


def check_name(how: str | None) -> None:
    """Raises ValueError where there is no such quantisation."""
    if how is not None and how not in QUANTIZATIONS:
        raise ValueError(f"quantize must be None or one of {list(QUANTIZATIONS)}, got {how!r}")


def check_quantization(how: str | None) -> None:
    """Before a model is loaded for nothing.

    Raises:
        ValueError: there is no such quantisation.
        ImportError: torchao is not installed.
    """
    check_name(how)
    if how is not None and importlib.util.find_spec("torchao") is None:
        raise ImportError(f"quantize={how!r} needs torchao: pip install 'janus-dola[quantize]'")


def quantize_blocks(parts: JanusParts, how: Quantization) -> None:
    """Stores the blocks' linear weights in 8 bits, in place; embeddings, final norm and image head stay as they are.

    Products are still made in the model's dtype. On a GPU it pays with the engine "compile" only, which makes the
    conversion part of the product.

    Args:
        how: "int8" (one scale for each output) or "fp8" (e4m3, likewise).
    """
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    quantize_(parts.blocks, Int8WeightOnlyConfig() if how == "int8" else Float8WeightOnlyConfig())
