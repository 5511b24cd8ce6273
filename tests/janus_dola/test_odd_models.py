"""Models that are not as a loader leaves them: each draws right, or one line says what it is and what to do."""

import copy
import gc
import os
import pickle
import weakref

import accelerate
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrizations, prune

from janus_dola import JanusDoLa
from janus_dola.models.soundness import check_sound

PROMPT = "a large red circle on white"


@pytest.fixture
def pipe(mini) -> JanusDoLa:
    """A copy of the mini model that may be changed."""
    return copy.deepcopy(mini)


@pytest.fixture(scope="module")
def expected(mini) -> torch.Tensor:
    return tokens(mini)


def tokens(pipe, **settings) -> torch.Tensor:
    return pipe(PROMPT, seed=3, window=16, **settings).tokens


def refusal(pipe) -> str:
    """The one line that each call which computes says."""
    codes, lines = torch.zeros(1, 1, pipe.image_model.image_tokens, dtype=torch.int64), set()
    for call in (
        lambda: pipe(PROMPT),
        lambda: pipe(PROMPT, sampler="multinomial"),
        lambda: pipe.stream(PROMPT),
        lambda: pipe.log_probs(PROMPT, codes),
        lambda: pipe.scores(PROMPT, codes),
    ):
        with pytest.raises(ValueError) as raised:  # noqa: PT011 (the caller checks it)
            call()
        lines.add(str(raised.value))
    (line,) = lines
    assert "\n" not in line
    return line


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """Distributed, with this process alone."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path_factory.mktemp('d')}/store")
    yield
    dist.destroy_process_group()


def test_sharded_by_fully_shard(pipe, one_rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(pipe.model, mesh=init_device_mesh("cpu", (1,)))
    assert "got ones that FSDP or tensor parallelism has sharded (DTensor): gather them into a plain model" in refusal(
        pipe
    )


@pytest.mark.parametrize("original", [False, True])
def test_wrapped_by_the_first_fsdp(pipe, one_rank, original, expected):
    from torch.distributed.fsdp import FullyShardedDataParallel

    wrapped = FullyShardedDataParallel(pipe.model, use_orig_params=original, device_id=torch.device("cpu"))
    pipe = JanusDoLa(wrapped, pipe.tokenizer)
    if original:  # one rank holds all
        assert torch.equal(tokens(pipe), expected)
    else:
        assert "must hold its weights whole, got one of shape [192, 192] for a Linear of [192, 192]" in refusal(pipe)
        with FullyShardedDataParallel.summon_full_params(wrapped):
            assert torch.equal(tokens(pipe), expected)


def test_a_shard_of_weights_is_refused(pipe):
    linear = pipe.image_model.blocks[2].mlp.up_proj
    linear.weight = nn.Parameter(linear.weight.detach().flatten()[:100])
    assert "got one of shape [100] for a Linear of [512, 192] that FSDP or ZeRO has flattened" in refusal(pipe)


@pytest.mark.parametrize("how", ["dispatched", "cpu", "disk"])
def test_hooks_of_accelerate(pipe, how, expected, tmp_path):
    if how == "dispatched":
        accelerate.dispatch_model(pipe.model, device_map={"": "cpu"}, force_hooks=True)
    elif how == "cpu":
        accelerate.cpu_offload(pipe.model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(pipe.model, tmp_path, execution_device=torch.device("cpu"))
    line = (
        "must not be dispatched or offloaded by accelerate, got its hooks: take them off with accelerate.hooks.remove_"
    )
    assert line in refusal(pipe)
    accelerate.hooks.remove_hook_from_module(pipe.model, recurse=True)
    assert torch.equal(tokens(pipe), expected)


def test_without_weights(pipe, expected):
    for device in ("meta", torch.device("meta")):
        with pytest.raises(ValueError, match="device must be one that is here, got 'meta'"):
            pipe.to(device)
    with pytest.raises(ValueError, match="device must be one that is here, got 'meta'"):
        JanusDoLa.from_pretrained("mini", device="meta")
    pipe.model.model.vision_model.to("meta")  # which does not draw
    assert torch.equal(tokens(pipe), expected)
    with pytest.raises(
        ValueError, match="model must be on one device as a whole, got cpu, meta; 'meta' holds no weights"
    ):
        pipe.answer(pipe(PROMPT).images[0][0], "what is it?")
    pipe.model.model.vqmodel.to("meta")
    assert "model must be on one device as a whole, got cpu, meta; 'meta' holds no weights: load them" in refusal(pipe)
    pipe.model.to("meta")
    assert "model must be on one device as a whole, got meta; 'meta' holds no weights: load them first" in refusal(pipe)


def test_two_devices_are_named():
    halves = nn.Linear(2, 2, device="cpu"), nn.Linear(2, 2, device="meta")
    with pytest.raises(ValueError, match="must be on one device as a whole, got cpu, meta"):
        check_sound(halves)


def test_wrappers(pipe, one_rank, expected):
    wrapped = nn.parallel.DistributedDataParallel(pipe.model)
    with pytest.raises(ValueError, match=r"got DistributedDataParallel; hand over its \.module"):
        JanusDoLa(wrapped, pipe.tokenizer)
    assert torch.equal(tokens(JanusDoLa(wrapped.module, pipe.tokenizer)), expected)
    with pytest.raises(ValueError, match="got Linear$"):
        JanusDoLa(nn.Linear(2, 2), pipe.tokenizer)
    assert torch.equal(tokens(JanusDoLa(torch.compile(pipe.model), pipe.tokenizer)), expected)
    pipe.model.compile()
    assert torch.equal(tokens(pipe), expected)


def test_float64_draws_and_its_recipe_draws_again(pipe, tmp_path):
    pipe.model.double()
    out = pipe(PROMPT, seed=3)
    assert out.jsd.dtype == torch.float64
    recipe = out.drawn[0][0].recipe
    assert recipe.dtype == "float64"
    (path,) = out.save(tmp_path)
    from janus_dola.images.recipe import read_recipe

    assert read_recipe(path) == recipe
    again = JanusDoLa.from_pretrained("mini", device="cpu", dtype=recipe.dtype)
    drawn = again(PROMPT, seed=3)
    assert torch.equal(drawn.tokens, out.tokens)
    assert drawn.images[0][0].tobytes() == out.images[0][0].tobytes()
    assert torch.equal(
        again.to(dtype="float32")(PROMPT, seed=3).tokens, JanusDoLa.from_pretrained("mini")(PROMPT, seed=3).tokens
    )


def test_dtypes_that_do_not_fit_each_other(pipe):
    pipe.image_model.blocks[1].to(torch.bfloat16)
    line = "blocks and embeddings of the model must have one dtype, got torch.bfloat16, torch.float32: give"
    with pytest.raises(ValueError, match=line):
        pipe(PROMPT)


@pytest.mark.parametrize("where", ["block", "head"])
@pytest.mark.parametrize("how", ["pruned", "normed", "parametrized"])
def test_weights_that_are_computed(pipe, expected, how, where):
    """In the blocks they are computed as torch does; in the image head one line says that they cannot be read."""
    block, head = pipe.image_model.blocks[1].mlp, pipe.image_model.image_head[0]
    linear = block.up_proj if where == "block" else head
    if how == "pruned":
        prune.l1_unstructured(linear, "weight", 0.98)
    elif how == "normed":
        parametrizations.weight_norm(linear)
    else:
        nn.utils.parametrize.register_parametrization(linear, "weight", Negated())
    attributes = list(vars(linear))
    if where == "head":
        assert "image head must be made of plain linears, got " in refusal_when_drawing(pipe)
        return
    drawn = tokens(pipe)
    assert list(vars(linear)) == attributes
    plain = copy.deepcopy(expected)
    if how == "pruned":
        prune.remove(linear, "weight")
    else:
        nn.utils.parametrize.remove_parametrizations(linear, "weight")
    assert torch.equal(tokens(pipe), drawn)
    assert torch.equal(drawn, plain) == (how == "normed")


class Negated(nn.Module):
    def forward(self, weight):
        return -weight


def refusal_when_drawing(pipe) -> str:
    with pytest.raises(ValueError, match="^[^\n]*$") as raised:
        pipe(PROMPT)
    return str(raised.value)


def test_modules_that_are_replaced_are_seen(pipe, expected):
    """By an adapter, by other embeddings; the pipe was made, and has drawn, before."""
    assert torch.equal(tokens(pipe), expected)
    own = pipe.model.get_input_embeddings()
    pipe.model.resize_token_embeddings(own.num_embeddings + 8)
    assert torch.equal(tokens(pipe), expected)
    other = nn.Embedding.from_pretrained(-2 * own.weight.detach().roll(1, 0))
    pipe.model.set_input_embeddings(other)
    assert not torch.equal(tokens(pipe), expected)
    pipe.model.set_input_embeddings(own)
    assert torch.equal(tokens(pipe), expected)


def test_a_copy_is_independent(mini, pipe, expected):
    pipe.model_name = "other"
    copied = copy.deepcopy(pipe)
    assert repr(copied) == repr(pipe) != repr(mini)
    assert torch.equal(tokens(copied), expected)
    with torch.no_grad():
        copied.model.model.generation_head.vision_head.weight.neg_()
    copied.tokenizer.add_tokens(["<more>"], special_tokens=True)
    copied.engine.halve(4)
    assert not torch.equal(tokens(copied), expected)
    assert torch.equal(tokens(pipe), expected)
    assert len(copied.tokenizer) == len(pipe.tokenizer) + 1
    assert pipe.engine.fit(9) > copied.engine.fit(9) == 2
    both = copy.deepcopy([pipe, pipe, pipe.model])
    assert both[0] is both[1]
    assert both[0].model is both[2]
    shallow = copy.copy(pipe)
    assert shallow.model is pipe.model
    assert torch.equal(tokens(shallow), expected)


@pytest.mark.parametrize("settings", [{"dtype": "float16"}, {"quantize": "int8"}])
def test_copies_of_packed_weights(settings):
    pipe = JanusDoLa.from_pretrained("mini", device="cpu", **settings)
    assert torch.equal(tokens(copy.deepcopy(pipe)), tokens(pipe))


def test_pickles_are_refused_and_say_what_to_do(mini):
    for dump in (pickle.dumps, lambda pipe: torch.save(pipe, os.devnull)):
        with pytest.raises(
            TypeError, match=r"^cannot pickle JanusDoLa, which holds [^\n]*save_pretrained\(folder\)[^\n]*$"
        ):
            dump(mini)


def test_nothing_of_a_dead_pipe_stays(mini):
    parts = []
    for _ in range(2):
        pipe = copy.deepcopy(mini)
        out = pipe(PROMPT, seed=1, negative_prompt="<|User|> blue")
        pipe.log_probs(PROMPT, out.tokens)
        pipe.answer(out.images[0][0], "what is <|User|>?", max_new_tokens=2)
        parts += [weakref.ref(each) for each in (pipe, pipe.model, pipe.tokenizer, pipe.engine)]
        del pipe, out
    gc.collect()
    assert [ref() for ref in parts] == [None] * len(parts)
