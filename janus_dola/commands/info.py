"""`janus-dola info`: what a model is made of."""

from typing import Annotated

import typer

from janus_dola.choices import MINI
from janus_dola.commands.options import Revision


def info(
    model: Annotated[str, typer.Argument(help='"mini", a folder or a repository.')] = MINI,
    revision: Revision = None,
) -> None:
    """Show a model's layers, shapes and default candidate layers; no weights are read."""
    import torch

    from janus_dola.config import DoLaConfig
    from janus_dola.kernels.packed import can_pack
    from janus_dola.models import find_parts
    from janus_dola.models.load import load_skeleton
    from janus_dola.threads import processors

    parts = find_parts(load_skeleton(model, revision))
    lines = {
        "model": model,
        "family": parts.family,
        "blocks (N)": parts.num_layers,
        "hidden size (D)": parts.head.hidden_size,
        "head width (E)": parts.head.code_weight.shape[1],
        "image codes (V)": parts.head.num_codes,
        "codes per image": parts.image_tokens,
        "image size": "{} x {} pixels".format(*parts.image_size),
        "default candidate layers": ", ".join(map(str, DoLaConfig().layers_to_read(parts.num_layers))),
        "threads on a CPU": f"{torch.get_num_threads()}, of {processors()} processors; OMP_NUM_THREADS changes it",
        "float16 on a CPU": "packed, computed with in float32" if can_pack() else "torch's own products, slow",
    }
    for name, value in lines.items():
        typer.echo(f"{name:26}{value}")
