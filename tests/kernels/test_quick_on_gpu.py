"""The shortest check of the kernels on a GPU: what `bench/gpu/compiling.py` compiles beforehand, and nothing else."""

from dataclasses import astuple

import pytest
import torch

from janus_dola.kernels.block_torch import PassStart, Positions, Rotary, run_blocks
from janus_dola.kernels.head import head_scores, sample_codes
from tests.kernels.blocks import in_double, random_block
from tests.kernels.cases import assert_accurate, dola, random_head, random_hidden, to

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
SHAPES = ("1B", "7B")
SHARPNESS = {"flat": 0.2, "as in a model": 1.0, "peaked": 3.0}


def bench():
    """The module that says which cases these are; here, since it needs Triton."""
    from bench.gpu import compiling

    return compiling


@pytest.mark.parametrize("sharpness", SHARPNESS)
@pytest.mark.parametrize("size", SHAPES)
def test_head_stage(size, sharpness):
    compiling, seed = bench(), 5
    head = to(random_head(*astuple(compiling.floor.SHAPES[size]), torch.bfloat16, seed, SHARPNESS[sharpness]), "cuda")
    for images in compiling.IMAGES:
        hidden = random_hidden(
            compiling.LAYERS, images, compiling.floor.SHAPES[size].hidden, torch.bfloat16, seed
        ).cuda()
        assert_accurate(head_scores(hidden, head, dola(), "triton"), hidden, head, dola())
        seeds, position = torch.arange(images, device="cuda"), torch.full((images,), 3, device="cuda")
        first = sample_codes(hidden, head, dola(), seeds, position, "triton")
        again = sample_codes(hidden, head, dola(), seeds, position, "triton")
        assert torch.equal(first.code, again.code)
        if images == 4:
            few = dola(top_k=50, top_p=0.9)
            left = head_scores(hidden, head, few, "triton").scores > -torch.inf
            drawn = sample_codes(hidden, head, few, seeds, position, "triton").code
            assert ((left.sum(1) >= 1) & (left.sum(1) <= 50)).all()
            assert left.gather(1, drawn[:, None]).all()


@pytest.mark.parametrize(("slots", "window"), [(1, 1), (1, 8), (1, 16), (1, 32), (33, 1), (13, 8)])
@pytest.mark.parametrize("size", [*SHAPES, "GLM-Image", "grouped heads"])
def test_blocks(size, slots, window):
    """Two blocks of ours in bfloat16, no further from float64 than those on tensors are, twice over: 2 to 208 rows."""
    from janus_dola.kernels import block_triton

    compiling, generator = bench(), torch.Generator().manual_seed(7)
    shape = compiling.OF_BLOCKS[size]
    of = shape.heads, shape.heads // shape.groups, shape.head_size, "qkv" if shape.glm else False, torch.bfloat16
    behind = ("attention", "mlp") if shape.glm else ()
    more = shape.hidden, shape.inner, shape.rotated, behind
    blocks = [random_block(*of, generator, "cuda", *more) for _ in range(2)]
    assert block_triton.why_not(blocks) is None
    rotated, capacity, rows = shape.rotated, compiling.CAPACITY, 2 * slots
    start = torch.randint(0, capacity - window, (rows,), generator=generator).cuda()
    prompt_tokens = torch.randint(0, 500, (rows,), generator=generator).cuda()
    angles = torch.outer(torch.arange(2048.0), 1e4 ** -(torch.arange(rotated // 2) * 2 / rotated)).repeat(1, 2)
    rotary = Rotary.of(angles.cos().bfloat16().cuda(), angles.sin().bfloat16().cuda(), 1000 if shape.glm else None)
    in_full = Rotary(rotary.cos.double(), rotary.sin.double(), rotary.image)
    x = torch.randn(rows * window, shape.hidden, generator=generator).bfloat16().cuda()
    cuda = torch.Generator("cuda").manual_seed(7)
    buffer = torch.randn(2, rows, capacity, 2, of[1], shape.head_size, generator=cuda, device="cuda").bfloat16()

    def on_tensors(x, blocks, rotary, buffer):
        place = Positions.of(start, window, rotary, capacity, capacity, shape.groups, prompt_tokens)
        return run_blocks(x, blocks, buffer, place, [])

    exact = on_tensors(x.double(), [in_double(each) for each in blocks], in_full, buffer.double())
    plain = on_tensors(x, blocks, rotary, buffer.clone())
    ours = block_triton.run_blocks(x, blocks, buffer, PassStart(start, rotary, capacity, prompt_tokens), [])
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max()
