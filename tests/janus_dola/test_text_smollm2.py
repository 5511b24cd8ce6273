"""DoLa for text on the weights of a trained model."""

import pytest
import torch

from janus_dola.contrasts import DoLaConfig
from janus_dola.text import dola_generate
from tests.janus_dola.smollm2 import INSTALL, PROMPTS, folder, load_smollm2

HIGH = [15, 17, 19, 21, 23, 25, 27, 29]  # what "high" is for 30 blocks
# float32 against float64 on the same hidden states; scores as close as this are a tie.
JSD, SCORE = 1e-5, 1e-4


@pytest.fixture(scope="module")
def smollm2():
    there = folder()
    if there is None:
        pytest.skip(f"needs the weights of SmolLM2: {INSTALL}")
    return load_smollm2(there)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_final_layer_and_alpha_0_give_the_tokens_of_generate(smollm2, cache):
    model, tokenizer = smollm2
    inputs = tokenizer(list(PROMPTS[4:7]), return_tensors="pt", padding=True)
    assert (inputs["attention_mask"] == 0).any()
    plain = {"custom_generate": dola_generate, "dola": DoLaConfig(alpha=0, premature_layer="final")}
    for sampling in ({"do_sample": False}, {"do_sample": True, "temperature": 1.0, "top_k": 0}):
        settings = {"max_new_tokens": 6, "cache_implementation": cache, "disable_compile": True, **sampling}
        torch.manual_seed(1)
        expected = model.generate(**inputs, **settings)
        torch.manual_seed(1)
        assert model.generate(**inputs, **settings, **plain).tolist() == expected.tolist()


def test_layers_jsd_and_words_of_20_prompts_are_those_of_float64_arithmetic(smollm2):
    model, tokenizer = smollm2
    inputs, tokens = tokenizer(list(PROMPTS), return_tensors="pt", padding=True), 6
    final = []

    def keep(norm, args):
        if args[0].ndim == 3:  # not what finds out which norm it is
            final.append(args[0][:, -1].double())

    handle = model.model.norm.register_forward_pre_hook(keep)
    out = model.generate(
        **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, custom_generate=dola_generate,
        dola_layers="high", return_dict_in_generate=True, output_hidden_states=True,
    )  # fmt: skip
    handle.remove()
    weight, scale = model.lm_head.weight.double(), model.model.norm.weight.double()
    near = 0
    for t in range(tokens):
        early = [out.hidden_states[t][layer][:, -1].double() for layer in HIGH]
        h = torch.stack([*early, final[t]])
        z = h / (h.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt() * scale @ weight.T
        log_q = z - z.logsumexp(-1, keepdim=True)
        log_m = torch.logaddexp(log_q[:-1], log_q[-1]) - torch.tensor(2.0).double().log()
        kl = [(log.exp() * (log - log_m)).sum(-1) for log in (log_q[-1].expand_as(log_m), log_q[:-1])]
        jsd = (kl[0] + kl[1]) / 2
        for row in range(len(PROMPTS)):
            layer, word = out.premature_layers[row, t].item(), out.sequences[row, t - tokens].item()
            chosen = HIGH.index(layer)
            assert out.jsd[row, t].item() == pytest.approx(jsd[chosen, row].item(), abs=JSD)
            contrast = log_q[-1, row] - log_q[chosen, row]
            contrast[log_q[-1, row] < log_q[-1, row].max() + torch.tensor(0.1).double().log()] = -torch.inf
            contrast[model.generation_config.eos_token_id] = -torch.inf  # of min_new_tokens
            near += chosen != jsd[:, row].argmax() or word != contrast.argmax()
            assert jsd[chosen, row] >= jsd[:, row].max() - JSD
            assert contrast[word] >= contrast.max() - SCORE
    assert near <= 1, f"{near} of {tokens * len(PROMPTS)} choices were ties"
    assert len(out.premature_layers.unique()) > 1
    print(f"{tokens * len(PROMPTS)} tokens, {near} near ties, layers {out.premature_layers.unique().tolist()}")
