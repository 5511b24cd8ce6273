"""Both families of Janus models: transformers' and DeepSeek's."""

import copy

import pytest
import torch

from janus_dola import JanusDoLa
from janus_dola.kernels import head_torch
from janus_dola.kernels.block_torch import run_whole
from janus_dola.models import adapt
from janus_dola.models.weights import WeightReader
from tests.deepseek_stand_in import MultiModalityCausalLM


@pytest.fixture(params=["transformers", "deepseek"])
def pipe(request, mini, deepseek) -> JanusDoLa:
    return {"transformers": mini, "deepseek": deepseek}[request.param]


def own_head(pipe):
    return pipe.model.model.generation_head if pipe.image_model.family == "transformers" else pipe.model.gen_head


def test_final_row_is_the_models_own_head_on_its_own_last_hidden_state(pipe):
    """The classic bug is to normalise it twice."""
    image_model = pipe.image_model
    ids = torch.tensor([pipe.encode("a red circle")[0].conditional, pipe.encode("a blue circle")[0].conditional])
    with torch.no_grad():
        embeddings = image_model.embed_text(ids)
        output = image_model.backbone(inputs_embeds=embeddings, output_hidden_states=True)
        expected = own_head(pipe)(output.last_hidden_state[:, -1])
        weights = WeightReader(image_model).read()
        _, states = run_whole(embeddings, weights.blocks, weights.rotary, [1, 3])
        for w, row in ((1.0, 0), (0.0, 1)):  # only the conditional, only the unconditional row
            logits = head_torch.head_logits(states[:, :, -1], image_model.head, w)
            assert torch.allclose(logits[-1, 0], expected[row], atol=1e-4)
    for hidden, layer in zip(states, (1, 3), strict=False):
        assert torch.allclose(hidden, output.hidden_states[layer], atol=1e-4)


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
    ids = deepseek.encode(prompt)[0].conditional
    torch.manual_seed(11)
    with torch.no_grad():
        expected = deepseek_loop(
            deepseek.model, ids, deepseek.prompts.special.pad, 3, deepseek.image_model.image_tokens, 5.0, temperature
        )
    torch.manual_seed(11)
    tokens = deepseek.generate(prompt, 3, dola=None, temperature=temperature, seed=None, sampler="multinomial").tokens
    assert torch.equal(tokens[0], expected)
    assert len(tokens.unique()) > 5


def test_deepseek_model_in_half_precision(mini):
    """Their image decoder cannot run in float16: its upsampling returns bfloat16."""
    model = MultiModalityCausalLM(len(mini.tokenizer)).eval()
    wide = JanusDoLa(model, mini.tokenizer).image_model.to_pixels(torch.arange(16)[None]).detach()
    pipe = JanusDoLa(model.half(), mini.tokenizer)
    assert torch.allclose(pipe.image_model.to_pixels(torch.arange(16)[None]).detach(), wide, atol=2e-2)
    assert pipe.generate("a red circle").images[0][0].size == (16, 16)


def test_model_that_is_not_a_janus(mini):
    with pytest.raises(
        ValueError, match="model must be transformers' JanusForConditionalGeneration or .* got LlamaModel"
    ):
        adapt(mini.model.model.language_model)


@pytest.mark.parametrize("family", ["transformers", "deepseek"])
def test_a_head_that_bitsandbytes_quantized_is_refused_with_what_to_do(mini, deepseek, family):
    pipe = mini if family == "transformers" else deepseek
    model = copy.deepcopy(pipe.model)
    quantized = type("Linear8bitLt", (torch.nn.Linear,), {"__module__": "bitsandbytes.nn.modules"})
    adapt(model).image_head[0].__class__ = quantized
    skip = {"transformers": "model.generation_head", "deepseek": "gen_head"}[family]
    assert skip in {name for name, _ in model.named_modules()}
    with pytest.raises(ValueError, match=rf"got Linear8bitLt .*llm_int8_skip_modules=\['{skip}'\]") as raised:
        JanusDoLa(model, pipe.tokenizer)
    assert "\n" not in str(raised.value)


def test_a_processor_stands_for_its_tokenizer(mini, monkeypatch):
    from transformers import JanusImageProcessor, JanusProcessor

    # transformers 4 takes Llama's class alone, though it does not matter to the processor.
    monkeypatch.setattr(JanusProcessor, "tokenizer_class", "PreTrainedTokenizerFast", raising=False)
    processor = JanusProcessor(JanusImageProcessor(), mini.tokenizer, chat_template=mini.tokenizer.chat_template)
    drawn = JanusDoLa(mini.model, processor).generate("a red circle", seed=5)
    assert torch.equal(drawn.tokens, mini.generate("a red circle", seed=5).tokens)


def test_tokenizer_without_the_tokens_of_janus(mini):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", pad_token="<pad>")
    with pytest.raises(ValueError, match="tokenizer must have the special token '<begin_of_image>'"):
        JanusDoLa(mini.model, plain)


def test_dtype_and_device_come_from_the_caller(mini):
    pipe = JanusDoLa.from_pretrained("mini", device="cpu", dtype="bfloat16")
    assert pipe.image_model.dtype == torch.bfloat16
    assert pipe.model.device == torch.device("cpu")
    assert pipe.generate("a red circle").images[0][0].size == (64, 64)
    with pytest.raises(ValueError, match="dtype must be one of .* got 'int8'"):
        JanusDoLa.from_pretrained("mini", device="cpu", dtype="int8")


def test_the_unconditional_row_has_pads_for_words(mini):
    prompts, special = mini.prompts, mini.prompts.special
    pad, bos, boi = special.pad, special.bos, special.begin_of_image
    assert prompts.rows([bos, 7, 8, boi]) == ([bos, 7, 8, boi], [bos, pad, pad, boi])
    assert prompts.rows([bos, boi]) == ([bos, boi], [bos, boi])


def test_prompts_are_run_once_and_not_once_per_image(mini, monkeypatch):
    rows = []
    embed_text = mini.image_model.embed_text
    monkeypatch.setattr(embed_text, "forward", lambda ids, run=embed_text.forward: rows.append(len(ids)) or run(ids))
    mini.generate(["a red cross", "a blue cross", "a red cross", "a small red cross"], parallel_size=2)
    assert len(rows) == 3  # three prompts, each with both its rows
