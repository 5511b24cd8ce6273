"""Nothing that the caller has switched on changes a result, and no call changes the model, torch's switches or Python."""

import copy
import sys
import threading
from contextlib import ExitStack, contextmanager

import peft
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from janus_dola import DoLaConfig, JanusDoLa, dola_runtime
from janus_dola.evaluate.clip import clip_scorer
from janus_dola.generation_inference import generate_with_dola
from janus_dola.models import contexts
from janus_dola.text import dola_generate
from tests.janus_dola.fingerprint import changes, fingerprint, switches
from tests.janus_dola.text_models import padded_batch, text_model
from tests.open_clip_stand_in import RED, stand_in

PROMPT, QUESTION = "a large red circle on white", "what is on it?"


@contextmanager
def put_back(change, before, *arguments):
    """Switches something of the whole process, for a test."""
    change(*arguments)
    try:
        yield
    finally:
        change(before)


CONTEXTS = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "fake tensors": FakeTensorMode,
    "several of a thread": lambda: _together(
        torch.inference_mode(), torch.enable_grad(), torch.autocast("cpu", torch.float16, cache_enabled=False)
    ),
    "bfloat16": lambda: put_back(torch.set_default_dtype, torch.float32, torch.bfloat16),
    # Not the precision of float32 products: it is the user's choice, which holds here where the processor has faster ones.
    "several of the process": lambda: _together(
        put_back(torch.set_default_dtype, torch.float32, torch.float64),
        put_back(torch.set_default_device, None, "meta"),
        put_back(torch.use_deterministic_algorithms, False, True),
        torch.autograd.set_detect_anomaly(True),
    ),
}


@contextmanager
def _together(*entered):
    with ExitStack() as stack:
        for each in entered:
            stack.enter_context(each)
        yield


@pytest.fixture
def pipe(mini) -> JanusDoLa:
    """A copy of the mini model that may be changed, and that was not drawn with."""
    return JanusDoLa(copy.deepcopy(mini.model), mini.tokenizer)


def tensors_of(pipe, picture) -> list:
    """What the calls that compute return, each that is a tensor; then pixels and words. A call that fails is among them."""
    out = pipe(PROMPT, 2, seed=3, window=8)
    streamed = next(iter(pipe.stream([PROMPT], 1, seed=4, contrast=None)))
    with pytest.raises(ValueError, match="tokens must be of shape"):
        pipe.log_probs(PROMPT, streamed.tokens)
    scores = pipe.scores(PROMPT, out.tokens)
    said = pipe.answer(picture, QUESTION, max_new_tokens=2)
    pieces = list(pipe.answer(picture, QUESTION, None, max_new_tokens=2, stream=True))
    return [
        *(out.tokens, out.jsd, out.premature_layers, out.passes, out.seeds, streamed.tokens, streamed.jsd),
        *(pipe.log_probs(PROMPT, out.tokens), scores.scores, scores.jsd, scores.log_distributions),
        [image.tobytes() for image in (out.images[0][1], streamed.image, out.layer_map(0, 1))],
        [said, pieces, repr(out), pipe.encode(PROMPT)],
    ]


def same(results, expected) -> bool:
    """Tells whether they are equal; tensors must be plain ones on the CPU."""
    for actual, right in zip(results, expected, strict=True):
        if isinstance(right, torch.Tensor):
            assert type(actual) is torch.Tensor
            assert (actual.device.type, actual.dtype, actual.is_inference()) == ("cpu", right.dtype, False)
            assert torch.equal(actual, right)
        else:
            assert actual == right
    return True


@pytest.fixture(scope="module")
def picture():
    return Image.new("RGB", (40, 64), "red")


@pytest.fixture(scope="module")
def expected(mini, picture):
    return tensors_of(mini, picture)


@pytest.mark.parametrize("name", CONTEXTS)
def test_no_context_changes_a_result_and_no_call_changes_anything(pipe, expected, picture, name):
    with CONTEXTS[name]():
        before = fingerprint(pipe.model)
        results = tensors_of(pipe, picture)
        assert changes(before, fingerprint(pipe.model)) == []
    assert same(results, expected)
    # Nothing that was made inside is kept.
    assert torch.equal(pipe(PROMPT, 2, seed=3, window=8).tokens, expected[0])
    weight = torch.ones(1, requires_grad=True)
    (weight * pipe.log_probs(PROMPT, results[0])).sum().backward()
    pipe.model(inputs_embeds=pipe.model.get_input_embeddings()(torch.tensor([[1, 2, 3]]))).logits.sum().backward()


@pytest.mark.parametrize("name", ["inference mode", "several of the process", "fake tensors"])
def test_a_model_that_is_loaded_moved_or_copied_anywhere_can_be_trained(name, expected):
    with CONTEXTS[name]():
        before = switches()
        JanusDoLa.check("mini", prompts=[PROMPT])
        pipe = copy.deepcopy(JanusDoLa.from_pretrained("mini", device="cpu"))
        pipe.to(dtype="bfloat16").to(dtype="float32")
        assert changes(before, switches()) == []
    assert {(type(each), each.dtype, each.is_inference()) for each in pipe.model.parameters()} == {
        (torch.nn.Parameter, torch.float32, False)
    }
    pipe.model(inputs_embeds=pipe.model.get_input_embeddings()(torch.tensor([[1, 2, 3]]))).logits.sum().backward()
    assert torch.equal(JanusDoLa.from_pretrained("mini", device="cpu")(PROMPT, 2, seed=3, window=8).tokens, expected[0])


def test_no_other_call_changes_anything(pipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", stand_in({"red": RED}))
    logits = torch.randn(3, 5, requires_grad=True).log_softmax(-1)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        before = fingerprint(pipe.model)
        out = pipe.generate([PROMPT, "x"], sampler="multinomial", seed=3, top_k=9)
        out.save(tmp_path / "all")
        out.drawn[0][0].save(tmp_path / "all" / "one.webp")
        pipe.check_prompt(PROMPT)
        pipe.encode([PROMPT, "<|User|>"], negative_prompt="blue")
        copied = copy.deepcopy(pipe)
        clip_scorer("Tiny:here", "cpu")(out.images[0], [PROMPT])
        dola_runtime.select_layer_by_jsd(logits[0], {2: logits[1], 4: logits[2]})
        assert changes(before, fingerprint(pipe.model)) == []
        drawn = generate_with_dola(pipe.model, pipe.tokenizer, PROMPT, parallel_size=1, outdir=tmp_path / "named")
        assert changes(before, fingerprint(pipe.model)) == ["torch's generator"]
    again = copied.generate([PROMPT, "x"], sampler="multinomial", seed=3, top_k=9)
    assert same([drawn.tokens - drawn.tokens, out.tokens], [torch.zeros(1, 1, 64, dtype=torch.int64), again.tokens])
    assert dola_runtime.contrast_with_apc_from_logprobs(logits[0], logits[1], 0.1).requires_grad


def test_an_error_in_the_middle_leaves_contexts_and_pipe_as_they_were(pipe, expected):
    def fail(*_):
        raise KeyError(str(switches()))

    for name in ("inference mode", "autocast", "device"):
        with CONTEXTS[name]():
            before = fingerprint(pipe.model)
            with pytest.raises(KeyError) as raised:
                pipe(PROMPT, callback=fail)
            # The callback has the caller's contexts, too.
            assert raised.value.args[0] == str(switches())
            assert changes(before, fingerprint(pipe.model)) == []
    assert torch.equal(pipe(PROMPT, 2, seed=3, window=8).tokens, expected[0])


def test_threads_have_their_own_contexts(pipe, expected):
    seen = {}

    def draw(name):
        with CONTEXTS[name]():
            before = switches()
            seen[name] = pipe(PROMPT, 2, seed=3, window=8).tokens
            seen[name, "switches"] = changes(before, switches())

    names = ["inference mode", "autocast", "device"]
    threads = [threading.Thread(target=draw, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        assert torch.equal(seen[name], expected[0])
        assert seen[name, "switches"] == []


def test_kinds_of_attention_come_back_when_the_last_thread_leaves():
    before = switches()["attention"]
    contexts._attention.__enter__()
    contexts._attention.__enter__()
    pinned = switches()["attention"]
    contexts._attention.__exit__()
    assert switches()["attention"] == pinned != before
    contexts._attention.__exit__()
    assert switches()["attention"] == before


@pytest.fixture
def training(pipe):
    """The mini model with an adapter on blocks and aligner, in training with dropout and gradient checkpointing."""
    targets = r".*(q_proj|v_proj|down_proj|generation_aligner\.fc1|language_model\.embed_tokens)$"
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_dropout=0.5, target_modules=targets, init_lora_weights=False)
    pipe = JanusDoLa(peft.get_peft_model(pipe.model, config), pipe.tokenizer)
    noise = lambda module, _, output: output + torch.randn_like(output) if module.training else output  # noqa: E731
    pipe.model.get_input_embeddings().register_forward_hook(noise)  # as NEFTune does
    return pipe


@pytest.fixture
def rested(training, picture):
    """What it gives in eval mode."""
    training.model.eval()
    return tensors_of(training, picture)


def test_what_training_switches_on_does_not_act(training, rested, picture):
    model = training.model.train()
    model.gradient_checkpointing_enable()
    for number, module in enumerate(model.modules()):  # modes as nobody would guess them
        module.training = number % 3 != 0 or "lora" in type(module).__module__
    before = fingerprint(model.get_base_model())
    results = tensors_of(training, picture)
    assert changes(before, fingerprint(model.get_base_model())) == []
    assert same(results, rested)
    assert torch.equal(training(PROMPT, 2, seed=3, window=1).tokens, rested[0])


def test_another_thread_that_trains_sees_no_mode_and_no_hook_change(training):
    """While pictures, answers and texts are made, all modules are in training, and none has a hook more."""
    model = training.model.train()
    inner, before = model.get_base_model(), fingerprint(model.get_base_model())
    seen = []
    look = inner.get_input_embeddings().register_forward_hook
    handle = look(lambda *_: seen.append([each for each in changes(before, fingerprint(inner)) if "module" in each]))
    training(PROMPT, max_images=1)
    training.answer(Image.new("RGB", (9, 9)), QUESTION, max_new_tokens=2)
    handle.remove()
    assert seen
    assert {name for each in seen for name in each} <= {
        next(f"module {name}" for name, module in inner.named_modules() if module is inner.get_input_embeddings())
    }


@pytest.mark.parametrize("contrast", [DoLaConfig([1, 2, 4]), DoLaConfig(alpha=0, premature_layer="final")])
def test_text_in_training_is_what_it_is_otherwise(contrast):
    model = text_model("Llama")
    settings = {"max_new_tokens": 8, "do_sample": False, "custom_generate": dola_generate, "contrast": contrast}
    expected = model.generate(**padded_batch(), **settings)
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.5
    model.train()
    model.gradient_checkpointing_enable()
    before = fingerprint(model)
    assert model.generate(**padded_batch(), **settings).tolist() == expected.tolist()
    assert changes(before, fingerprint(model)) == []
