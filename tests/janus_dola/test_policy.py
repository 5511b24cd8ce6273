"""Log-probabilities with gradients are those of plain autograd over transformers' forward, in float64."""

import copy
import math
from dataclasses import replace

import peft
import pytest
import torch

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.engine import policy as policy_module
from janus_dola.kernels import reference
from janus_dola.settings import DrawSettings

WORDS = ["a large red circle on white", "a blue cross"]
SETTINGS = {
    "alone": DrawSettings(1, 0.7, None),
    "guided": DrawSettings(3, 1.0, None, "a green square"),
    "dola": DrawSettings(3, 1.5, DoLaConfig(alpha=0.01)),
}


def exact_norm(self, x):
    """Replaces transformers' RMSNorm, which computes in float32."""
    return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.fixture
def pipe(short, monkeypatch) -> JanusDoLa:
    """The mini model with 4 x 4 codes in float64, which may be changed; other weights in some, so that little is certain."""
    pipe = copy.deepcopy(short).to(dtype="float64")
    monkeypatch.setattr(type(pipe.image_model.final_norm), "forward", exact_norm)
    with torch.no_grad():
        pipe.model.model.generation_head.vision_head.weight.mul_(0.3)
    return pipe


def naive(pipe, words, codes, settings) -> torch.Tensor:
    """Returns [T, V] log softmax(F / T) of one image by transformers' own modules, all codes at once."""
    model = pipe.model.get_base_model() if hasattr(pipe.model, "get_base_model") else pipe.model
    inner, rows = model.model, pipe.encode(words, settings.negative_prompt)[0]
    layers, sides = settings.layers_to_read(8), []
    for ids in rows[: 1 if settings.cfg_weight == 1 else 2]:
        fed = model.prepare_embeddings_for_image_generation(codes[:-1].unsqueeze(0))
        whole = torch.cat([inner.language_model.get_input_embeddings()(torch.tensor([ids])), fed.view(1, -1, 192)], 1)
        out = inner.language_model(inputs_embeds=whole, output_hidden_states=True)
        states = [*(inner.language_model.norm(out.hidden_states[layer]) for layer in layers), out.last_hidden_state]
        sides.append(inner.generation_head(torch.stack(states)[:, 0, len(ids) - 1 :]))
    logits = sides[0] if len(sides) == 1 else sides[1] + settings.cfg_weight * (sides[0] - sides[1])
    log_q = logits.log_softmax(-1)
    scores = log_q[-1]
    if settings.contrast is not None:
        q, (p, *_) = log_q[:-1].exp(), log_q[-1:].exp()
        m = (p + q) / 2
        jsd = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
        admitted = p >= settings.contrast.alpha * p.amax(-1, keepdim=True)
        scores = (scores - log_q[jsd.argmax(0), torch.arange(len(codes))]).masked_fill(~admitted, -math.inf)
    log_p = (scores / settings.temperature).log_softmax(-1)
    if settings.top_k or settings.top_p < 1:
        for row in log_p:
            order, most = row.sort(descending=True).indices, settings.top_k or len(row)
            row[order[most:]] = -math.inf
            below = row.softmax(-1)[order].cumsum(-1) >= settings.top_p
            row[order[1:][below[:-1]]] = -math.inf
    return log_p.log_softmax(-1)


def gradients(value, model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    value.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["plain", "lora and checkpoints"])
def test_equals_plain_autograd(pipe, name, kind, monkeypatch):
    """All of it, with logits of three codes at once; chunks end within images and prompts."""
    settings, other = SETTINGS[name], copy.deepcopy(pipe)
    with torch.no_grad():
        other.model.model.generation_head.vision_head.bias.add_(torch.linspace(-0.5, 0.5, 512))
    if kind != "plain":
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        model = peft.get_peft_model(pipe.model, config)
        model.gradient_checkpointing_enable({"use_reentrant": name == "dola"})
        model.enable_input_require_grads()
        pipe = JanusDoLa(model.train(), pipe.tokenizer)
    tokens = torch.randint(512, (2, 2, 16), generator=torch.Generator().manual_seed(0))
    if name == "dola":  # codes that can be drawn
        tokens = pipe.generate(WORDS, 2, settings, seed=3).tokens
    shapes, apply_head = [], reference.apply_head
    monkeypatch.setattr(reference, "apply_head", lambda x, head: shapes.append(x.shape) or apply_head(x, head))
    monkeypatch.setattr(policy_module, "_LOGITS_AT_ONCE", 3 * 512 * (1 + len(settings.layers_to_read(8))))

    actual = pipe.policy(WORDS, tokens, settings, reference=other)
    assert {shape[1] for shape in shapes} <= {1 + settings.guided, 3 * (1 + settings.guided)}
    weight = torch.linspace(-1, 1, tokens.numel(), dtype=torch.float64).view(tokens.shape)
    terms = actual[: 2 if name == "dola" else 3]  # its reference cannot draw all codes: the divergence is infinite
    actual_gradients = gradients((sum(terms) * weight).sum(), pipe.model)

    columns = []
    for words, images in zip(WORDS, tokens, strict=True):
        for codes in images:
            log_p, log_r = naive(pipe, words, codes, settings), naive(other, words, codes, settings).detach()
            none, p = log_p == -math.inf, log_p.exp()
            log_p, log_r = log_p.masked_fill(none, 0), log_r.masked_fill(none, 0)
            columns.append((log_p.gather(1, codes[:, None])[:, 0], -(p * log_p).sum(1), (p * (log_p - log_r)).sum(1)))
    expected = [torch.stack(column).view(tokens.shape) for column in zip(*columns, strict=True)]
    for term, right in zip(actual, expected, strict=True):
        assert torch.allclose(term, right, rtol=1e-9, atol=1e-11)
    assert actual.kl.detach().max() > 1e-3
    expected_gradients = gradients((sum(expected[: len(terms)]) * weight).sum(), pipe.model)
    assert actual_gradients.keys() == expected_gradients.keys()
    assert len(actual_gradients) == 32 if kind != "plain" else len(actual_gradients) > 80
    for each, right in expected_gradients.items():
        assert (actual_gradients[each] - right).abs().max() <= 1e-5 * right.abs().max() + 1e-12, each
    assert torch.equal(pipe.log_probs(WORDS, tokens, settings, grad=True), actual.log_probs)


def test_equals_finite_differences(pipe):
    """Along two random directions in all weights."""
    settings, model = SETTINGS["guided"], pipe.model
    tokens = torch.randint(512, (1, 2, 16), generator=torch.Generator().manual_seed(0))

    def value() -> torch.Tensor:
        policy = pipe.policy("a blue cross", tokens, settings)
        return policy.log_probs.mean() + policy.entropy.mean()

    slopes, step = gradients(value(), model), 1e-6
    weights = {name: weight for name, weight in model.named_parameters() if name in slopes}
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        ways = {name: torch.randn(weight.shape, generator=generator).double() for name, weight in weights.items()}
        values = []
        for sign in (1, -2):
            with torch.no_grad():
                for name, weight in weights.items():
                    weight += sign * step * ways[name]
                values.append(value())
        with torch.no_grad():
            for name, weight in weights.items():
                weight += step * ways[name]
        expected = sum((slopes[name] * ways[name]).sum() for name in weights)
        assert torch.allclose((values[0] - values[1]) / (2 * step), expected, rtol=1e-5)


def test_the_callers_contexts_act_and_what_cannot_be_trained_is_refused(short):
    """Autocast computes in 16 bits; without gradients there are none; nothing is left in the model."""
    out = short.generate(WORDS, 1, seed=3, contrast=None)
    before = {name: weight.clone() for name, weight in short.model.state_dict().items()}
    exact = short.policy(WORDS, out.tokens, contrast=None)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = short.policy(WORDS, out.tokens, contrast=None)
    assert rounded.log_probs.dtype == torch.float32
    assert 1e-5 < (rounded.entropy - exact.entropy).abs().max() < 0.5
    with torch.no_grad():
        alone = short.policy(WORDS, out.tokens, contrast=None)
    assert exact.log_probs.requires_grad
    assert not alone.log_probs.requires_grad
    assert torch.allclose(exact.log_probs, short.log_probs(WORDS, out.tokens, contrast=None), atol=1e-4)
    assert exact.kl is None
    given = short.policy(
        WORDS, out.tokens, premature_layers=torch.full_like(out.tokens, 8), contrast=DoLaConfig(alpha=0)
    )
    assert torch.allclose(given.log_probs, exact.log_probs, atol=1e-4)  # no contrast
    assert all(torch.equal(before[name], weight) for name, weight in short.model.state_dict().items())
    assert all(weight.grad is None for weight in short.model.parameters())
    with pytest.raises(ValueError, match="temperature must be above 0 for gradients"):
        short.policy(WORDS, out.tokens, temperature=0)
    with pytest.raises(ValueError, match="tokens must be of shape"):
        short.policy(WORDS, out.tokens[:1])
    packed = JanusDoLa.from_pretrained("mini", "cpu", "float16")
    with pytest.raises(ValueError, match="packed as float16"):
        packed.policy("a", torch.zeros(1, 1, 64, dtype=torch.int64))


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(
    "settings",
    [
        DrawSettings(1, 1.0, None),
        DrawSettings(3, 0.5, None, top_k=40, top_p=0.9),
        DrawSettings(3, 1.5, DoLaConfig(alpha=0.01), top_p=0.99),
        DrawSettings(3, 0, DoLaConfig()),
    ],
    ids=lambda settings: settings.summary(),
)
def test_images_come_with_the_log_probabilities_of_their_codes(pipe, short, backend, settings):
    """Those of a loop in float64, to five digits where the model is float64; whatever the window."""
    out = pipe.generate(WORDS[0], 2, settings, seed=3, backend=backend, window=1)
    with torch.no_grad():
        expected = naive(pipe, WORDS[0], out.tokens[0, 1], replace(settings, temperature=settings.temperature or 1e-6))
    expected = expected.gather(1, out.tokens[0, 1, :, None])[:, 0]
    assert torch.allclose(out.log_probs[0, 1], expected, atol=1e-5)
    assert settings.temperature == 0 or expected.min() < -1
    (streamed,) = pipe.stream(WORDS[0], 1, settings, seed=4, backend=backend)
    assert torch.allclose(streamed.log_probs, expected, atol=1e-5)
    out = short.generate(WORDS[0], 2, settings, seed=3, backend=backend, window=8)
    assert out.log_probs.dtype == torch.float32
    assert torch.allclose(out.log_probs, short.log_probs(WORDS[0], out.tokens, settings), atol=1e-4)
    assert (out.log_probs <= 0).all()
