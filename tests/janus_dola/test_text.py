"""DoLa for text through transformers' `generate`."""

import pytest
import torch

from janus_dola.contrasts import DoLaConfig
from janus_dola.text import dola_generate
from tests.janus_dola.text_models import FAMILIES, padded_batch, text_model


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("family", FAMILIES)
def test_final_layer_and_alpha_0_give_the_tokens_of_generate(family, cache):
    model = text_model(family)
    for settings in ({"do_sample": False}, {"do_sample": True, "temperature": 0.8, "repetition_penalty": 1.3}):
        settings |= {"max_new_tokens": 16, "cache_implementation": cache}
        torch.manual_seed(3)
        expected = model.generate(**padded_batch(), **settings)
        torch.manual_seed(3)
        plain = DoLaConfig(alpha=0, premature_layer="final")
        out = model.generate(**padded_batch(), **settings, custom_generate=dola_generate, dola=plain)
        assert out.tolist() == expected.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_layers_and_jsd_are_those_of_float64_arithmetic(family):
    model, inputs = text_model(family), padded_batch()
    out = model.generate(
        **inputs,
        max_new_tokens=12,
        do_sample=False,
        custom_generate=dola_generate,
        dola=DoLaConfig([1, 2, 4]),
        return_dict_in_generate=True,
        output_hidden_states=True,
        output_scores=True,
    )
    seen, (weight, norm) = set(), (model.lm_head.weight.double(), model.model.norm)
    scale = norm.weight.double() + (family == "Gemma")
    eps = model.config.rms_norm_eps
    final = []
    handle = norm.register_forward_pre_hook(lambda _, args: final.append(args[0].double()))
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 12, dtype=torch.long)], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    states = model(out.sequences, attention_mask=mask, position_ids=positions, output_hidden_states=True).hidden_states
    handle.remove()
    ended = torch.zeros(3, dtype=torch.bool)
    for t in range(out.premature_layers.shape[1]):
        column = inputs["input_ids"].shape[1] + t
        h = torch.stack([states[j][:, column - 1].double() for j in (1, 2, 4)] + [final[0][:, column - 1]])
        z = (h / (h.square().mean(-1, keepdim=True) + eps).sqrt() * scale) @ weight.T
        q = z.softmax(-1)
        m = (q[:-1] + q[-1]) / 2
        jsd = ((q[:-1] * (q[:-1] / m).log()).sum(-1) + (q[-1] * (q[-1] / m).log()).sum(-1)) / 2
        best = jsd.argmax(0)
        for row in range(3):
            if ended[row]:
                continue
            contrast = (q[-1, row] / q[best[row], row]).log()
            contrast[q[-1, row] < 0.1 * q[-1, row].max()] = -torch.inf
            assert out.premature_layers[row, t] == (1, 2, 4)[best[row]]
            assert out.jsd[row, t].item() == pytest.approx(jsd[best[row], row].item(), abs=1e-5)
            assert out.sequences[row, column] == contrast.argmax()
            seen.add(int(best[row]))
        ended |= out.sequences[:, column] == 2
    assert len(seen) > 1


def test_a_prompt_in_chunks_gives_a_layer_and_a_divergence_per_token():
    settings = {
        "max_new_tokens": 6,
        "do_sample": False,
        "custom_generate": dola_generate,
        "dola": DoLaConfig([1, 2, 4]),
    }
    settings |= {"return_dict_in_generate": True}
    model, inputs = text_model("Llama"), {name: tensor[:1] for name, tensor in padded_batch().items()}  # without pads
    whole, chunks = (model.generate(**inputs, **settings, **more) for more in ({}, {"prefill_chunk_size": 2}))
    assert chunks.sequences.tolist() == whole.sequences.tolist()
    assert chunks.premature_layers.tolist() == whole.premature_layers.tolist()
    assert torch.allclose(chunks.jsd, whole.jsd, atol=1e-5)


def test_row_does_not_depend_on_its_batch():
    model, inputs = text_model("Llama"), padded_batch()
    settings = {"max_new_tokens": 10, "do_sample": False, "custom_generate": dola_generate, "dola_layers": "high"}
    together = model.generate(**inputs, **settings)
    alone = model.generate(input_ids=inputs["input_ids"][1:2, 3:], **settings)
    assert together[1, 3 : 3 + alone.shape[1]].tolist() == alone[0].tolist()


def test_streamer_gets_prompt_and_tokens_and_end():
    class Streamer:
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Streamer()
    ids = torch.tensor([[1, 5, 9]])
    out = text_model("Llama").generate(
        input_ids=ids, max_new_tokens=5, do_sample=False, custom_generate=dola_generate, stream_to=streamer
    )
    assert streamer.ended
    assert streamer.tokens == out[0].tolist()


@pytest.mark.parametrize(
    ("family", "settings", "arguments", "message"),
    [
        ("Gemma2", {"head_dim": 8}, {}, "final_logit_softcapping must be unset"),
        ("StableLm", {}, {}, "final RMSNorm"),
        ("Llama", {}, {"num_beams": 2}, "num_beams must be 1"),
        (
            "Llama",
            {},
            {"dola": DoLaConfig(), "contrast": DoLaConfig()},
            "contrast must be left out where dola is given",
        ),
        ("Llama", {}, {"dola": DoLaConfig(), "dola_layers": "low"}, "dola_layers must be left out"),
        ("Llama", {}, {"dola": DoLaConfig(premature_layer=6)}, "premature_layer must lie in 1 .. 5"),
    ],
)
def test_errors_say_what_is_missing(family, settings, arguments, message):
    model = text_model(family, **settings)
    with pytest.raises(ValueError, match=message):
        model.generate(**padded_batch(), max_new_tokens=2, custom_generate=dola_generate, **arguments)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_forward_that_was_replaced_is_followed_or_refused():
    model, settings = text_model("Llama"), {"max_new_tokens": 4, "do_sample": False, "custom_generate": dola_generate}
    expected = model.generate(**padded_batch(), **settings).tolist()
    own = model.forward
    model.forward = torch.compile(own, backend="eager")
    assert model.generate(**padded_batch(), **settings).tolist() == expected
    model.forward = lambda *args, input_ids=None, **kwargs: own(*args, input_ids=input_ids, **kwargs)
    with pytest.raises(ValueError, match="model must call its own blocks and head, got one whose forward was replaced"):
        model.generate(**padded_batch(), **settings)
