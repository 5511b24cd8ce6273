"""Our block against transformers' own modules: hidden states of every block, rotary embeddings, grouped heads, biases."""

import copy
import inspect

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from janus_dola.kernels.block_torch import Matrix, Positions, block, run_blocks
from janus_dola.models import adapt
from janus_dola.models.families.janus import janus_model
from janus_dola.models.weights import WeightReader
from tests.deepseek_stand_in import MultiModalityCausalLM

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
ROPES = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}  # fmt: skip


@pytest.fixture(autouse=True)
def norm_in_full_precision(monkeypatch):
    """transformers' norm rounds float64 to float32."""

    def forward(norm, x):
        return x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt() * norm.weight

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


def llama(heads=4, key_value_heads=2, size=12, rope=None, bias=False, seed=0) -> LlamaModel:
    config = LlamaConfig(
        vocab_size=11, hidden_size=40, intermediate_size=56, num_hidden_layers=3, num_attention_heads=heads,
        num_key_value_heads=key_value_heads, head_dim=size, max_position_embeddings=128, attention_bias=bias, mlp_bias=bias,
    )  # fmt: skip
    if rope:
        if hasattr(config, "rope_parameters"):
            config.rope_parameters = {"rope_theta": 10000.0, **rope}
        else:  # transformers 4
            config.rope_scaling = rope
    torch.manual_seed(seed)
    model = LlamaModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # biases and norms, too
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def read(model: LlamaModel):
    """The weights of its blocks, and its rotary table."""
    head = torch.nn.Linear(40, 40, dtype=model.dtype), torch.nn.GELU(), torch.nn.Linear(40, 16, dtype=model.dtype)
    codes = torch.nn.Embedding(16, 40, dtype=model.dtype), torch.nn.Identity()
    image_model = janus_model(
        "transformers",
        model,
        head,
        "head",
        codes,
        torch.nn.Identity(),
        to_pixels=None,
        side=2,
        image_size=8,
        vision=None,
    )
    return WeightReader(image_model).read()


def hidden_states_of(model: LlamaModel, embeddings: torch.Tensor) -> torch.Tensor:
    """[N, S, D], the output of every block, before the final norm."""
    results = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: results.append(out[0] if isinstance(out, tuple) else out))
        for layer in model.layers
    ]
    model(inputs_embeds=embeddings.unsqueeze(0))
    for hook in hooks:
        hook.remove()
    return torch.stack([out.reshape(embeddings.shape) for out in results])


def in_windows(weights, embeddings, layers, widths, capacity=128):
    """[L, S, D] of rows that are fed in windows of these widths, the rest of the buffer poisoned by large numbers."""
    shape = (len(weights.blocks), 1, capacity, 2, weights.blocks[0].key_value_heads, weights.blocks[0].head_size)
    buffer, result, start = torch.full(shape, 1e4, dtype=embeddings.dtype), [], 0
    groups = weights.blocks[0].query_heads // weights.blocks[0].key_value_heads
    for width in widths:
        place = Positions.of(
            torch.tensor([start]), width, weights.rotary, capacity, 64 if start + width <= 64 else 128, groups
        )
        result.append(run_blocks(embeddings[start : start + width], weights.blocks, buffer, place, layers))
        start += width
    return torch.cat(result, 1)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rope", ROPES)
def test_blocks_are_transformers_for_every_rope(rope, dtype):
    model = llama(rope=ROPES[rope]).to(dtype)
    embeddings = torch.randn(70, 40, dtype=dtype)
    expected = hidden_states_of(model, embeddings)
    actual = in_windows(read(model), embeddings, [1, 2], [20, 1, 1, 8, 16, 24])
    assert torch.allclose(actual, expected, atol=TOLERANCE[dtype] * 10, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(("heads", "key_value_heads", "size"), [(4, 4, 10), (8, 4, 6), (5, 1, 8)])
@pytest.mark.parametrize("bias", [False, True])
def test_grouped_heads_and_biases(heads, key_value_heads, size, bias):
    model = llama(heads, key_value_heads, size, bias=bias).double()
    embeddings = torch.randn(30, 40, dtype=torch.float64)
    actual = in_windows(read(model), embeddings, [1, 2], [7, 4, 4, 1, 14])
    assert torch.allclose(actual, hidden_states_of(model, embeddings), atol=1e-11)


@pytest.mark.parametrize("family", ["transformers", "deepseek"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_hidden_states_of_every_layer_of_both_families(mini, family, dtype):
    model = mini.model if family == "transformers" else MultiModalityCausalLM(len(mini.tokenizer))
    image_model = adapt(copy.deepcopy(model).to(dtype).eval().requires_grad_(False))
    ids = torch.tensor(mini.encode("a large red circle on white")[0].conditional)
    embeddings = image_model.embed_text(ids)
    layers = list(range(1, image_model.num_layers))
    actual = in_windows(WeightReader(image_model).read(), embeddings, layers, [8, 4, len(ids) - 12])
    expected = hidden_states_of(image_model.backbone, embeddings)
    assert torch.allclose(actual, expected, atol=TOLERANCE[dtype] * 10, rtol=TOLERANCE[dtype] * 10)


@pytest.mark.parametrize("rows", [1, 7, 64, 65])
@pytest.mark.parametrize("bias", [False, True])
def test_products_with_large_weights(rows, bias):
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(1200, 1000, generator=generator)
    matrix = Matrix(weight, torch.randn(1200, generator=generator) if bias else None)
    x, residual = torch.randn(rows, 2000, generator=generator)[:, :1000], torch.randn(rows, 1200, generator=generator)
    expected = torch.nn.functional.linear(x.double(), weight.double(), None if not bias else matrix.bias.double())
    kept = residual.clone()
    assert matrix(x).is_contiguous()
    assert torch.allclose(matrix(x).double(), expected, atol=2e-4)
    assert torch.allclose(matrix.added_to(residual, x).double(), expected + residual, atol=2e-4)
    assert torch.equal(residual, kept)


class Operations(TorchDispatchMode):
    """Counts operations that compute; views cost nothing."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not func.name().startswith(
            ("aten::empty", "aten::_unsafe_view", "aten::_reshape_alias")
        ):
            self.names.append(func.name())
        return out


def test_a_block_is_eighteen_operations_at_most_and_transformers_twice_as_many(mini, monkeypatch, request):
    if request.config.getoption("--rounding") is not None:
        pytest.skip("the perturbation is made of operations, too")
    monkeypatch.undo()  # their norm as it is
    weights = mini.engine.weights.read()
    first = weights.blocks[0]
    place, x = Positions.of(torch.tensor([3, 5]), 4, weights.rotary, 64, 64, 1), torch.randn(8, 192)
    buffer = torch.zeros(2, 64, 2, first.key_value_heads, first.head_size)
    with torch.no_grad(), Operations() as ours:
        block(x, first, buffer, place)
    cos_sin = mini.image_model.backbone.rotary_emb(x, torch.arange(4).expand(2, 4))
    cache, x = DynamicCache(), x.view(2, 4, 192)
    theirs_forward = mini.image_model.blocks[0].forward
    name = "cache" if "cache" in inspect.signature(theirs_forward).parameters else "past_key_values"  # since 5.24
    with torch.no_grad(), Operations() as theirs:
        theirs_forward(x, position_embeddings=cos_sin, use_cache=True, **{name: cache})
    print(len(ours.names), len(theirs.names))
    assert len(ours.names) <= 18, ours.names
    assert len(theirs.names) >= 2 * len(ours.names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [1, 8])
def test_the_bits_of_a_row_do_not_depend_on_its_neighbours_nor_on_how_far_attention_looks(mini, dtype, window):
    image_model = adapt(copy.deepcopy(mini.model).to(dtype))
    weights, rows = WeightReader(image_model).read(), 6
    generator = torch.Generator().manual_seed(1)
    shape = (8, rows, 192, 2, weights.blocks[0].key_value_heads, weights.blocks[0].head_size)

    def run(mine, others, visible):
        """The first row's hidden states beside other rows."""
        x = torch.cat([mine[0], *(torch.randn(window, 192, generator=generator).to(dtype) for _ in range(rows - 1))])
        buffer = torch.randn(shape, generator=generator).to(dtype)
        buffer[:, 0] = mine[1]
        start = torch.tensor([21, *others])
        place = Positions.of(start, window, weights.rotary, 192, visible, 1)
        with torch.no_grad():
            return run_blocks(x, weights.blocks, buffer, place, [2, 4, 6])[:, :window]

    mine = (
        torch.randn(window, 192, generator=generator).to(dtype),
        torch.randn(shape[2:], generator=generator).to(dtype),
    )
    expected = run(mine, [0, 1, 2, 3, 4], 64)
    for others, visible in (([9, 5, 50, 3, 1], 64), ([100, 20, 7, 30, 80], 128), ([180, 0, 150, 1, 99], 192)):
        assert torch.equal(run(mine, others, visible), expected)


def test_rope_that_is_not_known_is_refused():
    model = llama()
    model.rotary_emb.rope_type = "longrope"
    with pytest.raises(ValueError, match="rope_type must be one of .* got 'longrope'"):
        read(model)
