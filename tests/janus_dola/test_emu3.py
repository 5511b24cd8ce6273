"""Another family than Janus: Emu3, whose codes are tokens of its vocabulary, with a token at the end of each line."""

import math

import pytest
import torch
from PIL import Image

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.kernels import head as head_stage
from janus_dola.kernels.contrast import jensen_shannon
from janus_dola.kernels.sampling import gumbel_max
from janus_dola.models import adapt
from janus_dola.settings import DrawSettings
from tests.janus_dola import emu3
from tests.janus_dola.emu3 import CODES, COLUMNS, ROWS

PROMPT, NEGATIVE, WEIGHT = "a red circle", "low quality, blurry", 3.0
DOLA = DoLaConfig(candidate_layers=[1, 2, 3], alpha=0.1)


@pytest.fixture(scope="module")
def pipe() -> JanusDoLa:
    tokenizer = emu3.tokenizer()
    return JanusDoLa(emu3.model(tokenizer), tokenizer)


@pytest.fixture(scope="module", params=[None, NEGATIVE], ids=["own unconditional row", "negative prompt"])
def by_transformers(request, pipe):
    """A negative prompt, and the sequence of transformers' own `generate` with four tokens behind an image, [1, T' + 4]."""
    ids, vocabulary, words = (
        pipe.encode(PROMPT)[0].conditional,
        pipe.model.vocabulary_mapping,
        pipe.tokenizer.get_vocab(),
    )
    negative = None if request.param is None else torch.tensor([pipe.encode(request.param)[0].conditional])
    behind = [words[name] for name in ("<|extra_200|>", "<|extra_201|>", "<|image end|>", "<|extra_204|>")]

    def allowed(_, given):
        place = len(given) - len(ids)
        if place >= ROWS * (COLUMNS + 1) - 1:
            return [behind[place - ROWS * (COLUMNS + 1) + 1]]
        return [vocabulary.eol_token_id] if (place + 1) % (COLUMNS + 1) == 0 else vocabulary.image_tokens

    sequence = pipe.model.generate(
        torch.tensor([ids]), prefix_allowed_tokens_fn=allowed, guidance_scale=WEIGHT, negative_prompt_ids=negative,
        do_sample=False, max_new_tokens=ROWS * (COLUMNS + 1) + 3,
    )  # fmt: skip
    return request.param, sequence[:, len(ids) :]


@pytest.mark.parametrize("window", [1, 4, 8])
def test_greedy_tokens_are_those_of_its_own_generate(pipe, by_transformers, window):
    negative, sequence = by_transformers
    codes = pipe.model.vocabulary_mapping.convert_bpe2img(sequence[:, :-3].view(-1, ROWS, COLUMNS + 1))
    drawn = pipe.generate(
        PROMPT, dola=None, cfg_weight=WEIGHT, temperature=0.0, window=window, negative_prompt=negative
    )
    assert torch.equal(drawn.tokens[0], codes.flatten(1).long())
    assert len(drawn.tokens.unique()) > 5
    assert not torch.equal(drawn.tokens, pipe.generate(PROMPT, dola=None, cfg_weight=1.0, temperature=0.0).tokens)
    assert drawn.passes.item() == ROWS * (COLUMNS + 1) - 2 if window == 1 else drawn.passes.item() < ROWS * COLUMNS


def test_pixels_are_those_of_its_own_decoder(pipe, by_transformers):
    _, sequence = by_transformers
    codes = pipe.generate(
        PROMPT, dola=None, cfg_weight=WEIGHT, temperature=0.0, negative_prompt=by_transformers[0]
    ).tokens[0]
    expected = pipe.model.decode_image_tokens(image_tokens=sequence, height=ROWS, width=COLUMNS)
    assert torch.equal(pipe.image_model.to_pixels(codes), expected)
    assert expected.shape == (1, 3, 2 * ROWS, 2 * COLUMNS)
    assert pipe.image_model.image_size == (2 * COLUMNS, 2 * ROWS)


def by_formulas(pipe, codes, seed, negative, temperature):
    """From transformers' modules in float64: F [T, V] of each code, the layers and their JSD, and the codes drawn."""
    model, both = pipe.model, pipe.encode(PROMPT, negative)[0]
    first = model.vocabulary_mapping.img2bpe[0]
    line_ends = torch.full((ROWS, 1), model.vocabulary_mapping.eol_token_id)
    sequence = torch.cat([codes.view(ROWS, COLUMNS) + first, line_ends], 1).flatten()[:-1]
    inner, of_rows = model.model.text_model, []
    for row in both:
        raw = []
        hook = inner.norm.register_forward_pre_hook(lambda _, given, raw=raw: raw.append(given[0]))
        states = model(torch.tensor([row + sequence[:-1].tolist()]), output_hidden_states=True).hidden_states
        hook.remove()
        stack = torch.stack([*(states[layer][0] for layer in DOLA.candidate_layers), raw[0][0]])
        of_rows.append(torch.log_softmax(model.lm_head(inner.norm(stack[:, len(row) - 1 :])), -1))
    guided = of_rows[1] + WEIGHT * (of_rows[0] - of_rows[1])  # over the whole vocabulary, as transformers has it
    places = [place for place in range(len(sequence)) if sequence[place] >= first]
    *early, final = torch.log_softmax(guided[:, places, first : first + CODES], -1)
    jsd = torch.stack([jensen_shannon(final, each) for each in early])
    chosen = jsd.argmax(0)
    scores = torch.where(
        final >= final.amax(-1, keepdim=True) + math.log(DOLA.alpha),
        final - torch.stack(early)[chosen, range(len(places))], -math.inf,
    )  # fmt: skip
    drawn = gumbel_max(scores, temperature, torch.full((len(places),), seed), torch.tensor(places))
    return scores, torch.tensor(DOLA.candidate_layers)[chosen], jsd.amax(0), drawn


@pytest.mark.parametrize("negative", [None, NEGATIVE])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_dola_follows_the_formulas(pipe, monkeypatch, negative, temperature):
    """Whatever the window, and whoever draws beside it; given its codes, in float64."""
    settings = {"dola": DOLA, "cfg_weight": WEIGHT, "temperature": temperature, "negative_prompt": negative}
    drawn = pipe.generate([PROMPT, "x"], 2, seed=[7, 8, 9, 7], window=1, **settings)
    for window in (4, 8):
        again = pipe.generate([PROMPT, "x"], 2, seed=[7, 8, 9, 7], window=window, **settings)
        assert torch.equal(again.tokens, drawn.tokens)
        assert torch.equal(again.premature_layers, drawn.premature_layers)
    log_probs = pipe.log_probs(PROMPT, drawn.tokens[:1], **settings)
    if temperature:  # rows differ in length, and lines have ends
        with_gradients = pipe.log_probs(PROMPT, drawn.tokens[:1], grad=True, **settings)
        assert torch.allclose(with_gradients, log_probs, atol=1e-4)
    wide = JanusDoLa(emu3.model(pipe.tokenizer).double(), pipe.tokenizer)
    for k, seed in enumerate((7, 8)):
        scores, layers, jsd, codes = by_formulas(wide, drawn.tokens[0, k], seed, negative, temperature)
        assert torch.equal(drawn.tokens[0, k], codes)
        assert torch.equal(drawn.premature_layers[0, k], layers)
        assert torch.allclose(drawn.jsd[0, k].double(), jsd, atol=1e-4)
        if temperature:
            expected = torch.log_softmax(scores, -1).gather(1, codes.unsqueeze(1)).squeeze(1)
            assert torch.allclose(log_probs[0, k].double(), expected, atol=1e-3)
    assert len(drawn.premature_layers.unique()) > 1


def test_prompts_are_framed_as_its_own_processor_does(pipe, monkeypatch):
    from transformers import Emu3ImageProcessor, Emu3Processor

    # transformers 4 takes classes of its own alone, though they do not matter to the processor.
    monkeypatch.setattr(Emu3Processor, "tokenizer_class", "PreTrainedTokenizerFast", raising=False)
    processor = Emu3Processor(Emu3ImageProcessor(), pipe.tokenizer)
    area = ROWS * COLUMNS * processor.downsample_ratio**2
    for words in (PROMPT, " two  words, 赤い円 "):
        framed = processor(
            text=[words], return_for_image_generation=True, ratio=f"{COLUMNS}:{ROWS}", image_area=area,
        )  # fmt: skip
        assert pipe.encode(words)[0].conditional == framed["input_ids"][0]
    assert torch.equal(JanusDoLa(pipe.model, processor).generate(PROMPT).tokens, pipe.generate(PROMPT).tokens)


def test_names_of_special_tokens_among_the_words_are_plain_text(pipe):
    words = "<|image token|> and <|visual token 000003|>"
    ids = pipe.encode(words)[0].conditional
    assert sum(number >= 256 for number in ids) == 3  # those of the frame
    assert pipe.tokenizer.decode(ids[1:]).startswith(words)


def test_an_update_of_the_weights_is_seen(pipe):
    fresh = JanusDoLa(emu3.model(pipe.tokenizer), pipe.tokenizer)
    before = fresh.generate(PROMPT).tokens
    embeddings = fresh.model.get_input_embeddings().weight.data
    embeddings[fresh.model.vocabulary_mapping.eol_token_id] *= -3
    after = fresh.generate(PROMPT).tokens
    assert torch.equal(after[..., :COLUMNS], before[..., :COLUMNS])  # no line had ended yet
    assert not torch.equal(after, before)


def test_codes_that_do_not_follow_each_other_are_refused(pipe):
    vocabulary = pipe.model.config.vocabulary_map
    fewer = {name: number for name, number in vocabulary.items() if name != "<|visual token 000005|>"}
    other = emu3.model(pipe.tokenizer)
    other.model.vocabulary_mapping = type(other.model.vocabulary_mapping)(fewer)
    with pytest.raises(ValueError, match="vocabulary_map must have tokens for 48 codes, one after the other, got 47"):
        adapt(other)


def test_a_tokenizer_of_another_family_is_refused(pipe, mini):
    with pytest.raises(ValueError, match=r"tokenizer must have the special token '<\|image start\|>'"):
        JanusDoLa(pipe.model, mini.tokenizer)


def test_what_else_a_pipe_does(pipe):
    """Streams, tells how far it is, says what it drew, maps layers on a picture that is no square, and moves."""
    settings = {"dola": DOLA, "cfg_weight": WEIGHT, "seed": 7}
    reports = []
    out = pipe.generate([PROMPT, "x"], callback=lambda done, of: reports.append((done, of)), **settings)
    assert reports[-1] == (2 * pipe.image_model.raster.length, 2 * pipe.image_model.raster.length)
    assert "10x8 pixels, 5x4 codes" in repr(out)
    assert out.layer_map(0, 0).size == (832, 376)
    streamed = list(pipe.stream([PROMPT, "x"], max_images=1, **settings))
    assert torch.equal(torch.stack([image.tokens for image in streamed]), out.tokens.flatten(0, 1))
    moved = JanusDoLa(emu3.model(pipe.tokenizer), pipe.tokenizer).to(dtype="bfloat16")
    assert moved.generate(PROMPT, **settings).tokens.shape == (1, 1, ROWS * COLUMNS)


def test_the_fused_stage_takes_its_head(pipe):
    if head_stage.head_triton is None:
        pytest.skip("needs Triton")
    states = torch.randn(4, 2, pipe.image_model.head.hidden_size, generator=torch.Generator().manual_seed(2))
    params = DrawSettings(WEIGHT, 1.0, DOLA).sampling_params(DOLA.candidate_layers)
    expected, fused = (
        head_stage.head_scores(states, pipe.image_model.head, params, each) for each in ("torch", "triton")
    )
    assert torch.allclose(fused.scores.softmax(-1), expected.scores.softmax(-1), atol=1e-5)
    assert torch.equal(fused.layer, expected.layer)


def test_questions_are_for_a_janus(pipe):
    with pytest.raises(ValueError, match="model must be a Janus to answer questions about pictures, got .* emu3"):
        pipe.answer(Image.new("RGB", (8, 8)), "what is on it?")
