"""A model that is handed over stays as it was, and one that was loaded here can be saved and trained as any other."""

import contextlib
import copy
import multiprocessing

import accelerate
import huggingface_hub
import peft
import pytest
import safetensors.torch
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from janus_dola import JanusDoLa

PROMPT = "a large red circle on white"
TENSORS = 348


@pytest.fixture
def theirs(mini) -> JanusDoLa:
    return JanusDoLa(copy.deepcopy(mini.model), mini.tokenizer)


@pytest.fixture
def ours() -> JanusDoLa:
    return JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32")


@pytest.fixture
def accelerator():
    yield accelerate.Accelerator(cpu=True)
    AcceleratorState._reset_state(True)


def tokens(pipe) -> torch.Tensor:
    return pipe.generate(PROMPT, dola=None, seed=3).tokens


def fresh(pipe) -> torch.Tensor:
    """What a pipeline made now draws."""
    return tokens(JanusDoLa(copy.deepcopy(pipe.model), pipe.tokenizer))


def begin_drawing(pipe) -> None:
    """Draws the first codes of an image: all that reads weights."""

    class EnoughError(Exception):
        pass

    def callback(*_):
        raise EnoughError

    with contextlib.suppress(EnoughError):
        pipe.generate(PROMPT, callback=callback)


def fingerprint(model) -> list:
    """All that can be seen of a model without its values."""
    prints: list = []
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        storage = t.untyped_storage()
        prints.append((name, id(t), t.data_ptr(), storage.data_ptr(), storage.nbytes(), t.stride(), t._version))
        prints.append((t.requires_grad, t.is_inference(), t.is_shared(), t.grad is None))
    for name, m in model.named_modules():
        prints.append(
            (name, id(m), type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks), list(vars(m)))
        )
    return prints


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("inference", [False, True])
def test_drawing_changes_nothing_in_a_model(theirs, dtype, inference):
    """In float16 on a CPU, too, in which a model that is loaded here is packed."""
    model = theirs.model.to(dtype).train()
    before = fingerprint(model)
    with torch.inference_mode(inference):
        begin_drawing(theirs)
        theirs.log_probs(PROMPT, torch.zeros(1, 1, theirs.image_model.image_tokens, dtype=torch.int64))
    assert fingerprint(model) == before
    embeddings = model.get_input_embeddings()(torch.tensor([[1, 2, 3]]))
    model.model.language_model(inputs_embeds=embeddings).last_hidden_state.float().sum().backward()
    begin_drawing(theirs)  # with what was computed in inference_mode, too


def through_file(save, name="model.safetensors", load=load_file):
    def saved(model, folder) -> dict:
        save(model, folder / name)
        return load(folder / name)

    return saved


def through_folder(save):
    def saved(model, folder) -> dict:
        save(model, folder)
        return load_file(folder / "model.safetensors")

    return saved


WAYS = {
    "state_dict": lambda model, folder: model.state_dict(),
    "save_pretrained": through_folder(lambda model, folder: model.save_pretrained(folder)),
    "safetensors.save_model": through_file(safetensors.torch.save_model),
    "safetensors.save_file": through_file(lambda model, path: safetensors.torch.save_file(model.state_dict(), path)),
    "torch.save": through_file(lambda model, path: torch.save(model.state_dict(), path), "model.pt", torch.load),
    "huggingface_hub.save_torch_model": through_folder(huggingface_hub.save_torch_model),
    "accelerate.save_model": through_folder(
        lambda model, folder: accelerate.Accelerator(cpu=True).save_model(model, folder)
    ),
}


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("whose", ["ours", "theirs", "packed"])
def test_every_way_of_saving_holds_all_tensors_after_drawing(whose, request, tmp_path, mini):
    if whose == "packed":
        pipe = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float16")
    else:
        pipe = request.getfixturevalue(whose)
    begin_drawing(pipe)
    expected = mini.model.state_dict()
    assert len(expected) == TENSORS
    for number, (way, save) in enumerate(WAYS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        saved = save(pipe.model, folder)
        names = {name.removeprefix("model.") for name in saved}
        assert len(saved) == TENSORS, way
        assert names == {name.removeprefix("model.") for name in expected}, way
        plain = copy.deepcopy(mini.model)
        plain.load_state_dict(saved)
        equal = [torch.equal(tensor, expected[name]) for name, tensor in plain.state_dict().items()]
        assert sum(equal) == TENSORS, way


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_accelerate_saves_and_loads_its_state_around_drawing(whose, request, tmp_path, accelerator):
    pipe = request.getfixturevalue(whose)
    model = accelerator.prepare(pipe.model)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = tokens(pipe)
    accelerator.save_state(tmp_path / "old")
    begin_drawing(pipe)
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            parameter.mul_(1.5)
    begin_drawing(pipe)
    accelerator.save_state(tmp_path / "new")
    assert len(load_file(tmp_path / "new" / "model.safetensors")) == TENSORS
    accelerator.load_state(tmp_path / "old")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(tokens(pipe), before)


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_weights_in_shared_memory_stay_there_and_what_another_process_writes_is_seen(whose, request):
    pipe = request.getfixturevalue(whose)
    before = tokens(pipe)
    pipe.model.share_memory()
    assert torch.equal(tokens(pipe), before)
    assert sum(parameter.is_shared() for parameter in pipe.model.parameters()) == len(list(pipe.model.parameters()))
    arrays = [block.self_attn.k_proj.weight.detach().numpy() for block in pipe.image_model.blocks]

    def train():
        for array in arrays:
            array *= -2

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    process.join()
    changed = tokens(pipe)
    assert not torch.equal(changed, before)
    assert torch.equal(changed, fresh(pipe))


@pytest.mark.parametrize("whose", ["ours", "theirs"])
@pytest.mark.parametrize("order", [1, -1])
def test_views_into_one_bucket_stay_views(whose, order, request):
    """As optimisers that share their state lay them, in the order of the modules or another."""
    pipe = request.getfixturevalue(whose)
    before = tokens(pipe)
    parameters = list(pipe.image_model.blocks.parameters())[::order]
    bucket = torch.cat([parameter.detach().flatten() for parameter in parameters])
    views = bucket.split([parameter.numel() for parameter in parameters])
    for parameter, view in zip(parameters, views, strict=True):
        parameter.data = view.view_as(parameter)
    assert torch.equal(tokens(pipe), before)
    bucket.mul_(torch.linspace(-1, 1, len(bucket)))
    assert all(
        torch.equal(parameter.detach().flatten(), view) for parameter, view in zip(parameters, views, strict=True)
    )
    changed = tokens(pipe)
    assert not torch.equal(changed, before)
    assert torch.equal(changed, fresh(pipe))


def losses(pipe, way, draws, steps=6) -> list[float]:
    """Trains the language model on a line of noise."""
    torch.manual_seed(0)
    model = pipe.model
    if way == "peft":
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]))
        pipe = JanusDoLa(model, pipe.tokenizer)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, fused=way == "fused")
    accelerator = accelerate.Accelerator(cpu=True)
    if way == "accelerate":
        model, optimizer = accelerator.prepare(model, optimizer)
    inner = pipe.image_model.backbone
    x, y = torch.randn(2, 1, 4, 192)
    out = []
    for _ in range(steps):
        loss = (inner(inputs_embeds=x).last_hidden_state - y).square().mean()
        if draws:
            begin_drawing(pipe)  # between forward and backward, too
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        if draws:
            begin_drawing(pipe)
        out.append(loss.item())
    if draws:
        assert torch.equal(tokens(pipe), tokens(JanusDoLa(pipe.model, pipe.tokenizer)))
    return out


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("way", ["plain", "fused", "accelerate", "peft"])
def test_training_is_the_same_to_the_last_bit_with_drawing_between_its_steps(mini, ours, way):
    plain = JanusDoLa(copy.deepcopy(mini.model).requires_grad_(True), mini.tokenizer)
    expected = losses(plain, way, draws=False)
    assert expected[-1] < expected[0]
    theirs = JanusDoLa(copy.deepcopy(mini.model).requires_grad_(True), mini.tokenizer)
    assert losses(theirs, way, draws=True) == expected
    ours.model.requires_grad_(True)
    assert losses(ours, way, draws=True) == expected
