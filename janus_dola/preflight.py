"""What can be wrong with a command is found before weights are loaded, or even downloaded."""

import warnings
from collections.abc import Iterable
from pathlib import Path

from janus_dola.engine.plan import resolve_engine
from janus_dola.kernels.early_exit import resolve_backend
from janus_dola.models.load import device_and_dtype, load_skeleton, load_tokenizer, resolve
from janus_dola.models.quantize import check_quantization
from janus_dola.pipeline import JanusDoLa
from janus_dola.settings import DrawSettings


def check_before_loading(
    model: str | Path,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    quantize: str | None = None,
    *,
    settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
    backend: str = "auto",
    engine: str = "auto",
    prompts: Iterable[str] = (),
) -> None:
    """Checks what is asked for against the description of a model, and against this machine.

    Args:
        model, device, dtype, revision, quantize: as for `JanusDoLa.from_pretrained`.
        settings, backend, engine, prompts: as for `JanusDoLa.generate`.
    Raises:
        FileNotFoundError, ValueError, ImportError: as `from_pretrained` and `generate` would.
    """
    check_quantization(quantize)
    on, stored = device_and_dtype(device, dtype)
    resolve_backend(backend, on, stored)
    resolve_engine(engine, on)
    folder = resolve(model, revision, weights=False)
    pipe = JanusDoLa(load_skeleton(folder), load_tokenizer(folder))
    if settings.dola is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # drawing says it
            settings.dola.layers_to_read(pipe.parts.num_layers)
    negative = () if settings.negative_prompt is None else (settings.negative_prompt,)
    for prompt in (*prompts, *negative):
        pipe.check_prompt(prompt)
