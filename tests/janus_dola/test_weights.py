"""Weights are held once, and what a pipeline draws with is what the model holds when drawing begins."""

import copy
from types import SimpleNamespace

import peft
import pytest
import torch
from torch import nn

from bench.speed.widened import widened
from janus_dola import JanusDoLa
from janus_dola.kernels.block_torch import Matrix
from janus_dola.models.weights import CalledModule, WeightReader

PROMPT = "a large red circle on white"


@pytest.fixture
def pipe(mini) -> JanusDoLa:
    """A copy of the mini model that may be changed."""
    return JanusDoLa(copy.deepcopy(mini.model), mini.tokenizer)


def tokens(pipe) -> torch.Tensor:
    return pipe.generate(PROMPT, dola=None, seed=3).tokens


def fresh(pipe) -> torch.Tensor:
    """What a pipeline made now draws."""
    return tokens(JanusDoLa(copy.deepcopy(pipe.model), pipe.tokenizer))


def other(weight: torch.Tensor) -> torch.Tensor:
    """A weight that draws another image."""
    return -2 * weight.roll(1, 0)


def linears(pipe) -> dict[str, nn.Linear]:
    inner = pipe.model.model
    return {
        "query": inner.language_model.layers[0].self_attn.q_proj,
        "value": inner.language_model.layers[5].self_attn.v_proj,
        "up": inner.language_model.layers[7].mlp.up_proj,
        "output": inner.language_model.layers[1].self_attn.o_proj,
        "aligner": inner.generation_aligner.fc1,
        "head": inner.generation_head.proj_out,
        "codebook": inner.generation_head.vision_head,
    }


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, "data in place") for name in ("query", "value", "up", "output", "aligner", "head", "codebook")),
        *(
            (name, how)
            for name in ("value", "value, laid as one", "aligner")
            for how in ("in place", "data", "parameter", "state dict", "state dict, assigned")
        ),
    ],
)
def test_a_changed_weight_is_seen(pipe, name, how):
    if "laid" in name:
        pipe.engine.weights.lay_as_one()  # as `from_pretrained` does
    before = tokens(pipe)
    linear = linears(pipe)[name.split(",")[0]]
    new = other(linear.weight.detach())
    with torch.no_grad():
        if how == "in place":
            linear.weight.copy_(new)
        elif how == "data in place":
            linear.weight.data.copy_(new)
        elif how == "data":
            linear.weight.data = new
        elif how == "parameter":
            linear.weight = nn.Parameter(new)
        else:
            linear.load_state_dict({**linear.state_dict(), "weight": new}, assign="assigned" in how)
    changed = tokens(pipe)
    assert not torch.equal(changed, before)
    assert torch.equal(changed, fresh(pipe))


def test_a_step_of_an_optimiser_is_seen(pipe):
    before = tokens(pipe)
    optimiser = torch.optim.AdamW(pipe.model.model.language_model.parameters(), lr=0.05)
    pipe.model.model.language_model(inputs_embeds=torch.randn(1, 3, 192)).last_hidden_state.square().sum().backward()
    optimiser.step()
    changed = tokens(pipe)
    assert not torch.equal(changed, before)
    assert torch.equal(changed, fresh(pipe))


def test_another_dtype_is_seen(pipe):
    tokens(pipe)
    pipe.model.double()
    assert torch.equal(tokens(pipe), fresh(pipe))
    assert pipe.generate(PROMPT).jsd.dtype == torch.float64


def test_weights_are_read_where_they_lie(pipe):
    attention = pipe.image_model.blocks[0].self_attn
    weights = [linear.weight for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
    qkv = pipe.engine.weights.read().blocks[0].qkv
    assert [each.weight.data_ptr() for each in qkv.products] == [weight.data_ptr() for weight in weights]
    assert qkv.whole is None


def test_weights_that_were_loaded_here_are_multiplied_as_one_until_they_are_moved(mini):
    pipe = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32")
    expected = mini.generate(PROMPT, dola=None, seed=3)
    attention = pipe.image_model.blocks[0].self_attn
    first, second = (pipe.engine.weights.read().blocks[0] for _ in range(2))
    assert first.qkv.whole is second.qkv.whole is not None
    weights = [linear.weight for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
    assert torch.equal(torch.cat(weights), first.qkv.whole.weight)
    assert [each.untyped_storage().nbytes() for each in weights] == [each.nbytes for each in weights]
    apart = JanusDoLa(pipe.model, pipe.tokenizer)  # whose reader laid nothing
    assert not any(each.qkv.whole or each.gate_up.whole for each in apart.engine.weights.read().blocks)
    assert torch.equal(tokens(apart), expected.tokens)
    assert torch.equal(tokens(pipe), expected.tokens)
    attention.k_proj.weight.data = attention.k_proj.weight.data.clone()
    assert pipe.engine.weights.read().blocks[0].qkv.whole is None
    assert pipe.engine.weights.read().blocks[0].gate_up.whole is not None
    assert torch.equal(tokens(pipe), expected.tokens)
    assert pipe.to("cpu").engine.weights.read().blocks[0].qkv.whole is not None


def test_memory_where_weights_lay_before_is_given_back(pipe, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    parts = SimpleNamespace(device=torch.device("cuda:0"), blocks=pipe.image_model.blocks)
    WeightReader(parts).lay_as_one()
    assert emptied == [1]


def test_a_model_that_was_drawn_with_is_saved_and_loaded_as_ever(pipe, tmp_path):
    expected = tokens(pipe)
    pipe.model.save_pretrained(tmp_path)
    pipe.tokenizer.save_pretrained(tmp_path)
    assert torch.equal(tokens(JanusDoLa.from_pretrained(tmp_path, device="cpu", dtype="float32")), expected)


def test_weights_of_a_real_shape_are_held_once():
    """Everything that the weights lie in, beside the size of the checkpoint."""
    pipe = widened("1B", blocks=2)
    checkpoint = sum(parameter.nbytes for parameter in pipe.model.parameters())
    reader = pipe.engine.weights
    weights = reader.read()
    held = [
        *pipe.model.parameters(),
        weights.code_table,
        weights.rotary.cos,
        weights.rotary.sin,
        *reader._code_table[1],
    ]
    for each in weights.blocks:
        held += [each.output.weight, each.down.weight]
        held += [matrix.weight for beside in (each.qkv, each.gate_up) for matrix in (beside.whole, *beside.products)]
    # By address and end: what was laid as one has a storage for the whole, and one for each part.
    storages, end = 0, 0
    for first, last in sorted(
        (s.data_ptr(), s.data_ptr() + s.nbytes()) for s in map(torch.Tensor.untyped_storage, held)
    ):
        storages += max(0, last - max(first, end))
        end = max(end, last)
    # The table of codes is as large as the codebook; 22 blocks that are left out here have none of their own.
    assert storages <= 1.05 * (checkpoint + 22 * checkpoint_of_a_block(pipe))


def checkpoint_of_a_block(pipe) -> int:
    return sum(parameter.nbytes for parameter in pipe.image_model.blocks[0].parameters())


def lora(pipe, *targets, seed=0) -> peft.PeftModel:
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(
        pipe.model, peft.LoraConfig(target_modules=list(targets), r=4, init_lora_weights=False)
    )
    return adapted.eval()


def test_adapters_on_the_blocks_are_applied_and_can_be_switched(pipe):
    plain = tokens(pipe)
    adapted = lora(pipe, "q_proj", "up_proj")
    pipe = JanusDoLa(adapted, pipe.tokenizer)
    first, second, third = pipe.engine.weights.read().blocks[0].qkv.products
    assert isinstance(first, CalledModule)
    assert isinstance(second, Matrix) and isinstance(third, Matrix)  # noqa: PT018
    with_adapter = tokens(pipe)
    assert not torch.equal(with_adapter, plain)
    with adapted.disable_adapter():
        assert torch.equal(tokens(pipe), plain)
    assert torch.equal(tokens(pipe), with_adapter)
    merged = JanusDoLa(adapted.merge_and_unload(), pipe.tokenizer)
    assert torch.equal(tokens(merged), with_adapter)


def test_adapters_on_the_aligner_are_applied_and_can_be_switched(pipe):
    plain = tokens(pipe)
    adapted = lora(pipe, "generation_aligner.fc1")
    pipe = JanusDoLa(adapted, pipe.tokenizer)
    assert not torch.equal(tokens(pipe), plain)
    with adapted.disable_adapter():
        assert torch.equal(tokens(pipe), plain)


def test_adapters_on_the_head_are_refused_until_they_are_merged(pipe):
    plain = tokens(pipe)
    adapted = lora(pipe, "generation_head.proj_out")
    with pytest.raises(ValueError, match=r"image head must be made of plain linears, got peft.*merge_and_unload"):
        tokens(JanusDoLa(adapted, pipe.tokenizer))
    assert not torch.equal(tokens(JanusDoLa(adapted.merge_and_unload(), pipe.tokenizer)), plain)


def test_what_would_be_left_out_is_refused(pipe):
    block = pipe.image_model.blocks[3]
    for module in (block, block.mlp, block.self_attn, block.input_layernorm):
        handle = module.register_forward_hook(lambda module, args, output: output)
        with pytest.raises(ValueError, match="block 3 of the language model must have no forward hooks"):
            tokens(pipe)
        handle.remove()
    block.mlp.forward = lambda x: x
    with pytest.raises(ValueError, match=r"got a changed LlamaMLP"):
        tokens(pipe)
    block.mlp.forward = type(block.mlp).forward.__get__(block.mlp)  # as transformers 4 leaves it
    tokens(pipe)
    block.self_attn.q_norm = nn.LayerNorm(8)
    with pytest.raises(ValueError, match="block 3 of the language model must be a Llama's, with .* got .*q_norm"):
        tokens(pipe)
    del block.self_attn.q_norm
    pipe.model.model.generation_aligner.to("meta")
    with pytest.raises(
        ValueError, match="model must be on one device as a whole, got cpu, meta; 'meta' holds no weights"
    ):
        tokens(pipe)


def test_a_hook_on_a_linear_is_run(pipe):
    plain = tokens(pipe)
    pipe.image_model.blocks[6].mlp.down_proj.register_forward_hook(lambda module, args, output: -output)
    assert not torch.equal(tokens(pipe), plain)


def test_training_mode_checkpointing_and_autocast_change_nothing(pipe):
    plain = tokens(pipe)
    pipe.model.gradient_checkpointing_enable()
    pipe.model.train()
    assert torch.equal(tokens(pipe), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokens(pipe), plain)
