"""Both families of Janus models: transformers' and DeepSeek's."""

import json

import pytest
import torch
from safetensors.torch import save_file

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.engine.decode import run_whole
from janus_dola.kernels import batched
from janus_dola.models import find_parts
from janus_dola.models.weights import WeightReader
from janus_dola.prompt import unconditional
from tests.deepseek_stand_in import MultiModalityCausalLM


@pytest.fixture(scope="module")
def deepseek(mini) -> JanusDoLa:
    model = MultiModalityCausalLM(len(mini.tokenizer)).eval().requires_grad_(False)
    return JanusDoLa(model, mini.tokenizer)


@pytest.fixture(params=["transformers", "deepseek"])
def pipe(request, mini, deepseek) -> JanusDoLa:
    return {"transformers": mini, "deepseek": deepseek}[request.param]


def own_head(pipe):
    return pipe.model.model.generation_head if pipe.parts.family == "transformers" else pipe.model.gen_head


def test_final_row_is_the_models_own_head_on_its_own_last_hidden_state(pipe):
    """The classic bug is to normalise it twice."""
    parts = pipe.parts
    ids = torch.tensor([pipe._prompt_ids("a red circle"), pipe._prompt_ids("a blue circle")])
    with torch.no_grad():
        embeddings = parts.embed_text(ids)
        output = parts.backbone(inputs_embeds=embeddings, output_hidden_states=True)
        expected = own_head(pipe)(output.last_hidden_state[:, -1])
        _, states = run_whole(embeddings, WeightReader(parts).read(), [1, 3])
        for w, row in ((1.0, 0), (0.0, 1)):  # only the conditional, only the unconditional row
            logits = batched.early_exit_logits(states[:, :, -1], parts.head, w)
            assert torch.allclose(logits[-1, 0], expected[row], atol=1e-4)
    for found, layer in zip(states, (1, 3), strict=False):
        assert torch.allclose(found, output.hidden_states[layer], atol=1e-4)


def deepseek_loop(model, ids, pad, images, steps, weight, temperature):
    """Their script's loop, written down again: interleaved rows, dynamic cache, torch.multinomial."""
    rows = torch.tensor([ids] * (2 * images))
    rows[1::2, 1:-1] = pad
    inputs, cache, tokens = model.language_model.get_input_embeddings()(rows), None, []
    for _ in range(steps):
        output = model.language_model.model(inputs_embeds=inputs, use_cache=True, past_key_values=cache)
        cache = output.past_key_values
        logits = model.gen_head(output.last_hidden_state[:, -1])
        guided = logits[1::2] + weight * (logits[0::2] - logits[1::2])
        tokens.append(torch.multinomial(torch.softmax(guided / temperature, -1), 1).squeeze(-1))
        inputs = model.prepare_gen_img_embeds(tokens[-1].repeat_interleave(2)).unsqueeze(1)
    return torch.stack(tokens, 1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_deepseek_baseline_draws_what_their_own_loop_draws(deepseek, temperature):
    prompt = "a red circle"
    ids = deepseek._prompt_ids(prompt)
    torch.manual_seed(11)
    with torch.no_grad():
        expected = deepseek_loop(
            deepseek.model, ids, deepseek._special.pad, 3, deepseek.parts.image_tokens, 5.0, temperature
        )
    torch.manual_seed(11)
    found = deepseek.generate(prompt, 3, dola=None, temperature=temperature, seed=None, sampler="multinomial").tokens
    assert torch.equal(found[0], expected)
    assert len(found.unique()) > 5


def test_deepseek_model_in_half_precision(mini):
    """Their image decoder cannot run in float16: its upsampling returns bfloat16."""
    model = MultiModalityCausalLM(len(mini.tokenizer)).eval()
    wide = JanusDoLa(model, mini.tokenizer).parts.decode_codes(torch.arange(16)[None]).detach()
    pipe = JanusDoLa(model.half(), mini.tokenizer)
    assert torch.allclose(pipe.parts.decode_codes(torch.arange(16)[None]).detach(), wide, atol=2e-2)
    assert pipe.generate("a red circle").images[0][0].size == (16, 16)


@pytest.mark.parametrize("form", ["bin", "sharded bin", "safetensors"])
def test_checkpoint_in_deepseeks_format(form, deepseek, tmp_path):
    state = deepseek.model.state_dict()
    (tmp_path / "config.json").write_text(json.dumps(deepseek.model.config_json()))
    if form == "bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
    elif form == "sharded bin":
        names = sorted(state)
        for i, half in enumerate((names[::2], names[1::2])):
            torch.save({name: state[name] for name in half}, tmp_path / f"pytorch_model-0000{i + 1}-of-00002.bin")
    else:
        save_file({name: weight.contiguous() for name, weight in state.items()}, tmp_path / "model.safetensors")
    deepseek.tokenizer.save_pretrained(tmp_path)
    loaded = JanusDoLa.from_pretrained(tmp_path, device="cpu")

    assert type(loaded.model).__name__ == "JanusForConditionalGeneration"
    assert loaded.parts.image_tokens == deepseek.parts.image_tokens
    for config in (None, DoLaConfig()):
        expected = deepseek.generate(["a red circle", "x"], 2, dola=config, seed=5)
        found = loaded.generate(["a red circle", "x"], 2, dola=config, seed=5)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.premature_layers, expected.premature_layers)
    codes = torch.arange(32).reshape(2, 16)
    pixels = [pipe.parts.decode_codes(codes).detach() for pipe in (loaded, deepseek)]
    assert torch.allclose(*pixels, atol=1e-4)
    ours, theirs = loaded.model.state_dict(), deepseek.model.state_dict()
    assert torch.equal(ours["lm_head.weight"], theirs["language_model.lm_head.weight"])
    tower = "vision_model.vision_tower.blocks.1.attn.qkv.weight"
    split = [ours[f"model.vision_model.encoder.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(torch.cat(split), theirs[tower])

    # Saved in transformers' format and loaded again, it is the same model.
    again = tmp_path / "again"
    loaded.model.save_pretrained(again)
    loaded.tokenizer.save_pretrained(again)
    reloaded = JanusDoLa.from_pretrained(again, device="cpu")
    assert torch.equal(reloaded.generate("x", seed=5).tokens, loaded.generate("x", seed=5).tokens)


def test_checkpoint_with_code_in_it_is_refused(tmp_path, deepseek):
    class Surprise:
        def __reduce__(self):
            return (print, ("this must never be printed",))

    (tmp_path / "config.json").write_text(json.dumps(deepseek.model.config_json()))
    torch.save({"surprise": Surprise()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="(?i)weights.only"):
        JanusDoLa.from_pretrained(tmp_path, device="cpu")


def test_checkpoint_with_missing_weights(tmp_path, deepseek):
    (tmp_path / "config.json").write_text(json.dumps(deepseek.model.config_json()))
    with pytest.raises(FileNotFoundError, match=r"holds neither \*.safetensors nor pytorch_model\*.bin"):
        JanusDoLa.from_pretrained(tmp_path, device="cpu")
    state = deepseek.model.state_dict()
    del state["gen_head.vision_head.bias"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"does not hold the weights of a Janus model.*generation_head.vision_head.bias"
    ):
        JanusDoLa.from_pretrained(tmp_path, device="cpu")


@pytest.mark.parametrize("name", ["no-such-folder/no-such-model", "bert"])
def test_model_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match=f"model must be \"mini\", a folder .* got '{name}'"):
        JanusDoLa.from_pretrained(name)


def test_checkpoint_of_another_kind(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="must be a Janus checkpoint .* got 'llama'"):
        JanusDoLa.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        JanusDoLa.from_pretrained(tmp_path)


def test_model_that_is_not_a_janus(mini):
    with pytest.raises(
        ValueError, match="model must be transformers' JanusForConditionalGeneration or .* got LlamaModel"
    ):
        find_parts(mini.model.model.language_model)


def test_tokenizer_without_the_tokens_of_janus(mini):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", pad_token="<pad>")
    with pytest.raises(ValueError, match="tokenizer must have the special token '<begin_of_image>'"):
        JanusDoLa(mini.model, plain)


def test_dtype_and_device_come_from_the_caller(mini):
    pipe = JanusDoLa.from_pretrained("mini", device="cpu", dtype="bfloat16")
    assert pipe.parts.dtype == torch.bfloat16
    assert pipe.model.device == torch.device("cpu")
    assert pipe.generate("a red circle").images[0][0].size == (64, 64)
    with pytest.raises(ValueError, match="dtype must be one of .* got 'int8'"):
        JanusDoLa.from_pretrained("mini", device="cpu", dtype="int8")


def test_the_unconditional_row_has_pads_for_words(mini):
    pad, bos, boi = mini._special.pad, mini._special.bos, mini._special.begin_of_image
    assert unconditional([bos, 7, 8, boi], mini._special) == [bos, pad, pad, boi]
    assert unconditional([bos, boi], mini._special) == [bos, boi]


def test_prompts_are_run_once_and_not_once_per_image(mini, monkeypatch):
    rows = []
    embed_text = mini.parts.embed_text
    monkeypatch.setattr(embed_text, "forward", lambda ids, run=embed_text.forward: rows.append(len(ids)) or run(ids))
    mini.generate(["a red cross", "a blue cross", "a red cross", "a small red cross"], parallel_size=2)
    assert len(rows) == 3 + 2  # three prompts of two lengths
