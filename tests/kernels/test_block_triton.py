"""The blocks by our own kernels, under Triton's interpreter, against the blocks on tensors in float64."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from janus_dola.kernels.block import resolve_blocks
from janus_dola.kernels.block_torch import Beside, Matrix, PassStart, Positions, Rotary, attention, run_blocks
from tests.kernels.blocks import HIDDEN, Launches, in_double, random_block
from tests.kernels.cases import CPU_BACKENDS

if "triton" not in CPU_BACKENDS:
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

from triton.runtime import interpreter

from janus_dola.kernels import block_triton
from janus_dola.kernels.gpu import block_matmul
from janus_dola.kernels.gpu.attention import attend
from janus_dola.kernels.gpu.launch import MatmulLaunch

# Largest difference over the largest number, after two blocks. Triton's interpreter cuts bfloat16 off, where a GPU rounds.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}
CAPACITY = 320


def rotary_of(size, dtype=torch.float64, image=None) -> Rotary:
    angles = torch.outer(torch.arange(float(CAPACITY)), 100.0 ** -(torch.arange(size // 2) * 2 / size)).repeat(1, 2)
    return Rotary.of(angles.cos().to(dtype), angles.sin().to(dtype), image)


def tiles(seed) -> MatmulLaunch:
    """Any tiles, which a table might name."""
    draw = random.Random(seed)
    outputs, columns, inputs = draw.choice((64, 128)), draw.choice((16, 32, 64, 128)), draw.choice((32, 64))
    return MatmulLaunch(outputs, columns, inputs, 4, 1, draw.choice((1, 2, 4)))


BOTH = ("attention", "mlp")


@pytest.mark.parametrize(
    ("rows", "heads", "groups", "size", "window", "bias", "dtype", "rotated", "behind"),
    [
        (3, 3, 1, 12, 1, False, torch.float32, None, ()),
        (5, 2, 2, 10, 3, True, torch.float32, None, ()),
        (3, 2, 4, 16, 8, False, torch.float16, None, ()),
        (3, 1, 2, 32, 2, False, torch.bfloat16, None, ()),
        (1, 1, 1, 8, 1, False, torch.bfloat16, None, ()),
        (1, 1, 2, 8, 32, True, torch.float32, None, ()),
        (17, 1, 1, 8, 8, False, torch.bfloat16, None, ()),
        (65, 1, 1, 8, 1, False, torch.float32, None, BOTH[1:]),
        (1, 1, 16, 16, 16, True, torch.bfloat16, 8, BOTH),  # as GLM-Image
        (5, 2, 3, 12, 3, True, torch.float32, 4, BOTH),
        (3, 1, 2, 10, 2, False, torch.float32, 2, BOTH[:1]),
    ],
)
def test_blocks_are_those_on_tensors(rows, heads, groups, size, window, bias, dtype, rotated, behind, monkeypatch):
    """With the tiles of the table, and with others; where few numbers are rotated, by positions counted from an image."""
    generator = torch.Generator().manual_seed(rows)
    blocks = [
        random_block(groups * heads, heads, size, bias, dtype, generator, rotated=rotated, behind=behind)
        for _ in range(2)
    ]
    visible = 270 if rows <= 3 else 40
    start = torch.randint(0, visible - window + 1, (rows,), generator=generator)
    x = torch.randn(rows * window, HIDDEN, generator=generator).to(dtype)
    before = torch.randn(2, rows, CAPACITY, 2, heads, size, generator=generator).to(dtype)
    rotary, expected_buffer = rotary_of(rotated or size, dtype, image=100 if rotated else None), before.double()
    prompt_tokens = torch.randint(0, 101, (rows,), generator=generator)
    in_full = Rotary(rotary.cos.double(), rotary.sin.double(), rotary.image)
    place = Positions.of(start, window, in_full, CAPACITY, visible, groups, prompt_tokens)
    expected = run_blocks(x.double(), [in_double(each) for each in blocks], expected_buffer, place, [1])

    assert (block_triton.why_not(blocks) is None) == (dtype != torch.float16)
    for seed in (None, rows):
        if seed is not None:
            monkeypatch.setattr(block_matmul, "launch_of", lambda *_, seed=seed: tiles(seed))
        buffer = before.clone()
        actual = block_triton.run_blocks(x, blocks, buffer, PassStart(start, rotary, visible, prompt_tokens), [1])
        assert actual.dtype == buffer.dtype == dtype
        for ours, theirs in ((actual, expected), (buffer, expected_buffer)):
            assert (ours.double() - theirs).abs().max() <= TOLERANCE[dtype] * theirs.abs().max()


def test_positions_behind_the_buffer_are_not_written():
    """Those of guesses behind an image's end: in the buffer the next row follows."""
    block = random_block(2, 1, 8, False, torch.float32, torch.Generator().manual_seed(0))
    buffer = torch.full((1, 2, 64, 2, 1, 8), torch.nan)
    start = PassStart(torch.tensor([62, 0]), rotary_of(8, torch.float32), 64)
    block_triton.run_blocks(torch.randn(8, HIDDEN), [block], buffer, start, [])
    written = buffer[0].isfinite().all(-1).all(-1).all(-1)
    assert written.nonzero().tolist() == [[0, 62], [0, 63], [1, 0], [1, 1], [1, 2], [1, 3]]


@pytest.mark.parametrize("seed", range(5))
def test_attention_over_random_starts_windows_and_groups(seed):
    """Whatever lies behind a row's new positions is never read: it is no number here."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    rows, window, heads, groups, size = draw(1, 3), draw(1, 32), draw(1, 2), draw(1, 4), 2 * draw(2, 10)
    visible = draw(window, 300)
    start = torch.randint(0, visible - window + 1, (rows,), generator=generator)
    start[0] = visible - window  # up to the last position that is looked at
    queries = torch.randn(rows, window, groups * heads, size, generator=generator)
    buffer = torch.randn(rows, CAPACITY, 2, heads, size, generator=generator)
    ahead = torch.arange(visible) > (start[:, None] + torch.arange(window))[..., None]
    mask = torch.zeros(ahead.shape, dtype=torch.float64).masked_fill_(ahead, -torch.inf).repeat(1, groups, 1)[:, None]
    expected = attention(queries.double(), buffer[:, :visible].double(), mask, 0.3)

    buffer[torch.arange(CAPACITY) >= start[:, None] + window] = torch.nan
    actual = attend(queries.flatten(2).flatten(0, 1), buffer, start, visible, 0.3)
    assert torch.allclose(actual.double(), expected, atol=5e-6)


@pytest.fixture
def sums_in_order(monkeypatch):
    """Triton's interpreter leaves products to numpy, whose library sums the columns of one product in different orders."""

    def create_dot(builder, a, b, d, *_):
        product = (a.data.astype(np.float32)[:, :, None] * b.data.astype(np.float32)).sum(1, dtype=np.float32)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@pytest.mark.usefixtures("sums_in_order")
@pytest.mark.parametrize(
    ("window", "dtype", "kind"),
    [
        (1, torch.float32, {}),
        (3, torch.float16, {}),
        (3, torch.float32, {"rotated": 4, "behind": BOTH}),
    ],
)
def test_the_bits_of_a_row_do_not_depend_on_the_others_nor_on_where_it_stands(window, dtype, kind):
    """Up to as many rows as one entry of the launch table is for, not even on how many others there are."""
    generator = torch.Generator().manual_seed(1)
    blocks = [random_block(2, 1, 8, False, dtype, generator, **kind) for _ in range(2)]
    rotary = rotary_of(kind.get("rotated", 8), dtype, image=90 if kind else None)
    mine = torch.randn(window, HIDDEN, generator=generator).to(dtype)
    history = torch.randn(2, CAPACITY, 2, 1, 8, generator=generator).to(dtype)
    results = []
    for others, at, visible in ((0, 0, 128), (2, 0, 128), (8, 5, 320), (9, 9, 128)):
        start = torch.randint(0, visible - window, (others + 1,), generator=generator)
        x = torch.randn(others + 1, window, HIDDEN, generator=generator).to(dtype)
        buffer = torch.randn(2, others + 1, CAPACITY, 2, 1, 8, generator=generator).to(dtype)
        prompt_tokens = torch.randint(0, 90, (others + 1,), generator=generator)
        start[at], prompt_tokens[at], x[at], buffer[:, at] = 70, 60, mine, history
        place = PassStart(start, rotary, visible, prompt_tokens)
        states = block_triton.run_blocks(x.flatten(0, 1), blocks, buffer, place, [1])
        results.append(states.unflatten(1, (-1, window))[:, at])
    for states in results[1:]:
        assert torch.equal(states, results[0])


@pytest.mark.parametrize("behind", [(), BOTH])
def test_launches_of_a_block(behind, monkeypatch):
    """On tensors without a device, at any number of blocks; before the first and after the last there is one each."""
    blocks = [random_block(8, 2, 16, False, torch.bfloat16, None, "meta", behind=behind) for _ in range(5)]
    x = torch.empty(8, HIDDEN, dtype=torch.bfloat16, device="meta")
    buffer = torch.empty(5, 4, CAPACITY, 2, 2, 16, dtype=torch.bfloat16, device="meta")
    start = torch.empty(4, dtype=torch.int64, device="meta")
    rotary = Rotary(*(torch.empty(CAPACITY, 16, dtype=torch.bfloat16, device="meta") for _ in range(2)))
    with Launches(monkeypatch) as launches:
        actual = block_triton.run_blocks(x, blocks, buffer, PassStart(start, rotary, 320), [2, 3])
    assert actual.shape == (3, 8, HIDDEN)
    assert len(launches.names) <= 5 * (6 + len(behind)) + 2, launches.names


BLOCK = random_block(4, 2, 8, False, torch.float32, torch.Generator())
OTHERS = {
    "plain, contiguous weights, got a function for down": replace(BLOCK, down=lambda rows: rows),
    "plain, contiguous weights, got a Matrix for output": replace(BLOCK, output=Matrix(torch.zeros(72, 64)[:, ::2])),
    "weights of one dtype, got torch.float64 for qkv": replace(BLOCK, qkv=in_double(BLOCK).qkv),
    "biases for all that are multiplied as one or for none, got some for gate_up": replace(
        BLOCK, gate_up=Beside((Matrix(torch.zeros(80, 72)), Matrix(torch.zeros(80, 72), torch.zeros(80))))
    ),
    "heads of size up to 128, got 256": replace(BLOCK, head_size=256),
    "heads of a multiple of the numbers rotated, got 6 of 8": replace(BLOCK, rotated=6),
    "bfloat16 or float32, got float16": random_block(4, 2, 8, False, torch.float16, torch.Generator()),
}


@pytest.mark.parametrize("message", OTHERS)
def test_blocks_that_the_kernels_do_not_serve_run_on_tensors(message):
    own = resolve_blocks("triton", [BLOCK, BLOCK], 2)
    assert own is block_triton.run_blocks
    others = [OTHERS[message]] if "float16" in message else [BLOCK, OTHERS[message]]
    assert message in block_triton.why_not(others)
    assert resolve_blocks("triton", others, 2) is resolve_blocks("torch", [BLOCK], 2) is not own


def test_compiled_blocks_are_those_on_tensors():
    assert resolve_blocks("triton", [BLOCK], 1, compiled=True) is not block_triton.run_blocks
