"""Words are plausible among those that logits processors leave, whatever leaves them out; checked in float64."""

import math

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from janus_dola.contrasts import DoLaConfig, SLEDConfig
from janus_dola.kernels.contrast import sled
from janus_dola.text import dola_generate
from tests.janus_dola.text_models import text_model

PROMPTS = torch.tensor([[1, 5, 9, 13], [1, 44, 3, 90], [1, 60, 71, 8]])
NEW, WORDS = 6, 97
CONTRASTS = {
    "dola": DoLaConfig([1, 2, 4], alpha=0.1),
    "static": DoLaConfig(alpha=0.1, premature_layer=3),
    "final": DoLaConfig(alpha=0.1, premature_layer="final"),
    "sled": SLEDConfig([2, 4], evolution_rate=2.0, evolution_scale=2),
}


@pytest.fixture(scope="module")
def model():
    """So sure of its words that at alpha 0.1 one word is plausible at most places."""
    sharp = text_model("Llama")
    sharp.lm_head.weight.data *= 8
    return sharp


@pytest.fixture(scope="module")
def favourites(model):
    """The words that the model finds most probable after the prompts, and in its own words after them."""
    plain = model.generate(PROMPTS, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    return sorted(set(plain[:, PROMPTS.shape[1] :].flatten().tolist()))


class Grammar(LogitsProcessor):
    """Leaves some words out in place; it must be called once per token."""

    def __init__(self, banned):
        self.banned, self.calls = banned, 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        assert input_ids.shape[1] == PROMPTS.shape[1] + self.calls - 1
        scores[:, self.banned] = -math.inf
        return scores


def cases(banned):
    """Arguments of `generate`, and the words that they leave out at a step, given the ids so far."""
    always = dict.fromkeys(range(NEW), banned)
    allowed = [word for word in range(WORDS) if word not in banned]
    no_end = {"eos_token_id": banned, "pad_token_id": 0}
    return {
        "min_new_tokens": (no_end | {"min_new_tokens": 4}, dict.fromkeys(range(4), banned)),
        "min_length": (no_end | {"min_length": PROMPTS.shape[1] + 3}, dict.fromkeys(range(3), banned)),
        "suppress_tokens": ({"suppress_tokens": banned}, always),
        "begin_suppress_tokens": ({"begin_suppress_tokens": banned}, {0: banned}),
        "bad_words_ids": ({"bad_words_ids": [[word] for word in banned]}, always),
        "sequence_bias": ({"sequence_bias": [[[word], -math.inf] for word in banned]}, always),
        "prefix": ({"prefix_allowed_tokens_fn": lambda batch, ids: allowed}, always),
        "own": ({"logits_processor": LogitsProcessorList([Grammar(banned)])}, always),
        "invalid values": ({"suppress_tokens": banned, "remove_invalid_values": True}, always),
        "no_repeat_ngram_size": ({"no_repeat_ngram_size": 1}, {}),
        "repetition_penalty": ({"suppress_tokens": banned, "repetition_penalty": 1.3}, always),
        "forced_eos_token_id": ({"forced_eos_token_id": 7}, {NEW - 1: [word for word in range(WORDS) if word != 7]}),
    }


NAMES = list(cases([0]))


def in_float64(model, contrast, sequences):
    """F (where there is no contrast z_N) and log q_N of each place: [B, T, V], by formulas alone but for SLED's."""
    final = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, args: final.append(args[0].double()))
    states = model(sequences, output_hidden_states=True).hidden_states
    handle.remove()
    layers = contrast.layers_to_read(6)
    h = torch.stack([states[layer].double() for layer in layers] + [final[0]])
    scale, eps = model.model.norm.weight.double(), model.config.rms_norm_eps
    z = (h / (h.square().mean(-1, keepdim=True) + eps).sqrt() * scale) @ model.lm_head.weight.double().T
    log_q = z - z.logsumexp(-1, keepdim=True)
    if isinstance(contrast, SLEDConfig):
        rate = torch.full((z.shape[1] * z.shape[2],), contrast.evolution_rate, dtype=torch.float64)
        scale = torch.full_like(rate, contrast.evolution_scale, dtype=torch.int64)
        return sled(z.flatten(1, 2), rate, scale, everywhere=True).scores.view(z.shape[1:]), log_q[-1]
    if not layers:
        return z[-1], log_q[-1]
    mixed = torch.logaddexp(log_q[:-1], log_q[-1]) - math.log(2)
    kl = [(log.exp() * (log - mixed)).sum(-1) for log in (log_q[-1].expand_as(mixed), log_q[:-1])]
    best = (kl[0] + kl[1]).argmax(0)
    return log_q[-1] - log_q[:-1].gather(0, best[None, ..., None].expand_as(log_q[:1]))[0], log_q[-1]


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_words_are_plausible_among_those_that_are_left(model, favourites, name, contrast):
    contrast, without_best = CONTRASTS[contrast], 0
    for sample in (False, True):
        arguments, banned = cases(favourites)[name]
        torch.manual_seed(5)
        sampling = {"do_sample": True, "temperature": 0.9, "top_k": 5} if sample else {"do_sample": False}
        out = model.generate(
            PROMPTS, max_new_tokens=NEW, custom_generate=dola_generate, contrast=contrast,
            **({} if "eos_token_id" in arguments else {"min_new_tokens": NEW, "eos_token_id": 2}), **arguments, **sampling,
        )  # fmt: skip
        start, ends = PROMPTS.shape[1], favourites if "eos_token_id" in arguments else []
        scores, log_q = in_float64(model, contrast, out)
        for row in range(len(out)):
            for step in range(out.shape[1] - start):
                F, q = scores[row, start + step - 1].clone(), log_q[row, start + step - 1].clone()
                before, word = out[row, : start + step].tolist(), int(out[row, start + step])
                if set(before[start:]) & set(ends):
                    break
                left_out = set(banned.get(step, [])) | (set(before) if name == "no_repeat_ngram_size" else set())
                left_out |= set() if ends else {2}
                without_best += int(q.argmax()) in left_out
                if name == "repetition_penalty":
                    for each in set(before):
                        F[each] = F[each] * 1.3 if F[each] < 0 else F[each] / 1.3
                q[list(left_out)] = F[list(left_out)] = -math.inf
                least = (
                    q.sort(descending=True).values[1] if isinstance(contrast, SLEDConfig) else q.max() + math.log(0.1)
                )
                F[q < least - 1e-4] = -math.inf
                assert F[word] > -math.inf
                assert sample or F[word] >= F.max() - 1e-4
    assert without_best > 0


def test_where_nothing_is_banned_warpers_see_minus_infinity_off_the_plausible_words(model):
    seen = []

    class OwnLogitsWarper(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(scores.clone())
            return scores

    class Own(OwnLogitsWarper, LogitsProcessor):
        """A processor by its own name, a warper by its parent's."""

    for own in (OwnLogitsWarper(), Own()):
        model.generate(
            PROMPTS, max_new_tokens=2, do_sample=False, custom_generate=dola_generate, contrast=DoLaConfig(alpha=0.5),
            logits_processor=LogitsProcessorList([own]),
        )  # fmt: skip
    assert len(seen) == 4
    assert all(scores.isneginf().any(-1).all() for scores in seen)
