"""The blocks of a Llama of the 1B shape by OpenVINO, beside ours, on a CPU: one position of each row a step.

Needs `pip install openvino`. Both take hidden states, keys and values of the same shapes; weights have 16 bits in
OpenVINO's file. OpenVINO computes in what it takes for the best here (bfloat16 where the processor has it) and in float32.
Steps alternate.
"""

import time
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

import torch
import typer
from torch import Tensor, nn

from bench.speed import floor
from bench.speed.widened import widened
from janus_dola.engine.decoder import VISIBLE_MULTIPLE
from janus_dola.kernels.block_torch import Positions, buffer_shape, run_blocks

BLOCKS, POSITION, ROUNDS = 4, 40, 40


class Step(nn.Module):
    """The blocks with transformers' modules' weights, keys and values handed in and out, as a converter can follow them."""

    def __init__(self, blocks: nn.ModuleList, heads: int) -> None:
        super().__init__()
        self.blocks, self.heads = blocks, heads

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Takes x [R, D], keys and values [N, R, H, S, d], cos and sin [d]; returns x, keys and values, S + 1 long."""
        new_keys, new_values = [], []
        for number, block in enumerate(self.blocks):
            normed = block.input_layernorm(x)
            attention = block.self_attn
            query, key, value = (
                linear(normed).unflatten(-1, (self.heads, -1))
                for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            query, key = (each * cos + torch.cat(each.chunk(2, -1)[::-1], -1) * sin for each in (query, key))
            all_keys = torch.cat([keys[number], key.unsqueeze(2)], 2)
            all_values = torch.cat([values[number], value.unsqueeze(2)], 2)
            mixed = nn.functional.scaled_dot_product_attention(query.unsqueeze(2), all_keys, all_values)
            x = x + attention.o_proj(mixed.squeeze(2).flatten(1))
            normed = block.post_attention_layernorm(x)
            mlp = block.mlp
            x = x + mlp.down_proj(nn.functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
            new_keys.append(all_keys)
            new_values.append(all_values)
        return x, torch.stack(new_keys), torch.stack(new_values)


def ours(dtype: torch.dtype, rows: int):
    """Returns a step of our blocks."""
    pipe = widened("1B", BLOCKS, dtype=dtype)
    weights = pipe.engine.weights.read()
    buffer = torch.randn(buffer_shape(weights.blocks, rows, VISIBLE_MULTIPLE)).to(pipe.image_model.dtype)
    x = torch.randn(rows, weights.code_table.shape[1]).to(pipe.image_model.dtype)
    place = Positions.of(torch.full((rows,), POSITION), 1, weights.rotary, VISIBLE_MULTIPLE, VISIBLE_MULTIPLE, 1)
    return lambda: run_blocks(x, weights.blocks, buffer, place, [])


def theirs(rows: int, folder: Path) -> dict:
    """Returns a step by OpenVINO in each precision."""
    import openvino as ov

    pipe = widened("1B", BLOCKS)
    heads = pipe.image_model.config.num_attention_heads
    hidden = pipe.image_model.config.hidden_size
    size = hidden // heads
    cache = torch.randn(BLOCKS, rows, heads, POSITION, size)
    given = torch.randn(rows, hidden), cache, cache.clone(), torch.randn(size), torch.randn(size)
    model = ov.convert_model(Step(pipe.image_model.blocks, heads).eval(), example_input=given)
    ov.save_model(model, folder / "step.xml", compress_to_fp16=True)
    steps = {}
    for name, options in {"its choice": {}, "float32": {"INFERENCE_PRECISION_HINT": "f32"}}.items():
        compiled = ov.Core().compile_model(folder / "step.xml", "CPU", {"PERFORMANCE_HINT": "LATENCY", **options})
        request, inputs = compiled.create_infer_request(), [each.numpy() for each in given]
        steps[f"OpenVINO, {name} ({compiled.get_property('INFERENCE_PRECISION_HINT').type_name})"] = (
            lambda request=request, inputs=inputs: request.infer(inputs, share_inputs=True)
        )
    return steps


@torch.no_grad()
def main() -> None:
    """Print milliseconds of a step, and the bytes of 16-bit weights that it reads a second."""
    with TemporaryDirectory() as folder:
        for rows in (2, 8):
            steps = {
                f"ours, {name}": ours(dtype, rows)
                for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16))
            }
            steps |= theirs(rows, Path(folder))
            seconds: dict[str, list[float]] = {name: [] for name in steps}
            for turn in range(ROUNDS + 5):
                for name, step in steps.items():
                    start = time.perf_counter()
                    step()
                    if turn >= 5:
                        seconds[name].append(time.perf_counter() - start)
            sizes = floor.BLOCKS["1B"]
            size = 2 * BLOCKS * (4 * sizes.hidden**2 + 3 * sizes.hidden * sizes.inner)
            for name, times_of in seconds.items():
                low, middle, high = quantiles(times_of, n=4)
                times = f"{middle * 1e3:.1f} ({low * 1e3:.1f} - {high * 1e3:.1f})"
                typer.echo(f"| {rows} | {name} | {times} | {size / middle / 1e9:.1f} |")


if __name__ == "__main__":
    typer.run(main)
