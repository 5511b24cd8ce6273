"""`janus-dola info`: shows what a model is made of, and what would run it."""

import platform
from importlib import metadata
from typing import Annotated

import typer

from janus_dola.arguments import MINI
from janus_dola.cli.options import Revision

_SOFTWARE = ("janus-dola", "torch", "transformers", "triton")


def info(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help='"mini", a folder or a Hugging Face repository.')
    ] = MINI,
    revision: Revision = None,
) -> None:
    """Show a model's layers, shapes and default candidate layers, without reading its weights; and what would run it."""
    import torch

    from janus_dola.cli.startup import processors
    from janus_dola.contrasts import DoLaConfig
    from janus_dola.models import adapt
    from janus_dola.models.checkpoint.load import load_skeleton
    from janus_dola.models.storage import default_device, fastest_on_cpu

    device = default_device()
    image_model = adapt(load_skeleton(model, revision))
    lines = {
        "model": model,
        "family": image_model.family,
        "blocks (N)": image_model.num_layers,
        "hidden size (D)": image_model.head.hidden_size,
        "head width (E)": image_model.head.code_weight.shape[1],
        "image codes (V)": image_model.head.num_codes,
        "codes per image": image_model.image_tokens,
        "image size": "{} x {} pixels".format(*image_model.image_size),
        "default candidate layers": ", ".join(map(str, DoLaConfig().layers_to_read(image_model.num_layers))),
        "software": f"python {platform.python_version()}, "
        + ", ".join(f"{name} {_version(name)}" for name in _SOFTWARE),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{device}, {platform.machine()}",
        "threads on a CPU": f"{torch.get_num_threads()}, of {processors()} processors; OMP_NUM_THREADS changes it",
        "fastest dtype on a CPU": f"{fastest_on_cpu()}; the default is float32",
    }
    for name, value in lines.items():
        typer.echo(f"{name:26}{value}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is not installed"
