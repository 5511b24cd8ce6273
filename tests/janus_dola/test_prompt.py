"""From words to token ids: templates of both Januses, templates of other tokenizers, and special tokens among the words."""

import copy

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from janus_dola.models.families.janus_prompts import PAD, JanusPrompts

PRO = "<|User|>: a red circle\n\n<|Assistant|>:<begin_of_image>"
OLD = "User: a red circle\n\nAssistant:<begin_of_image>"


@pytest.fixture
def tokenizer(mini):
    """One to be changed at will."""
    return copy.deepcopy(mini.tokenizer)


def ids_of(prompt, tokenizer):
    return JanusPrompts(tokenizer).ids(prompt)


def whole(text, tokenizer):
    """The ids of a text with its special tokens, as upstream's scripts encode it."""
    return [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize(
    "name", ["", "/models/Janus-Pro-1B", "deepseek-ai/Janus-Pro-7B", "/data/janus-1.3b/Janus-Pro-1B"]
)
def test_without_a_template_of_its_own_a_tokenizer_gets_that_of_janus_pro(tokenizer, name):
    tokenizer.chat_template, tokenizer.name_or_path = None, name
    assert ids_of("a red circle", tokenizer) == whole(PRO, tokenizer)


@pytest.mark.parametrize(
    "name",
    [
        "deepseek-ai/Janus-1.3B",
        "/models/Janus-1.3B-tuned/",
        "/cache/models--deepseek-ai--Janus-1.3B/snapshots/0123abc",
    ],
)
def test_the_first_janus_is_known_by_its_name(tokenizer, name):
    tokenizer.chat_template, tokenizer.name_or_path = None, name
    assert ids_of("a red circle", tokenizer) == whole(OLD, tokenizer)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ 'User: ' + m['content'] + '\n\n' }}{% endfor %}{{ 'Assistant:' }}",
        "{% for m in messages %}User: {{ m['content'] }}\n\n{% endfor %}Assistant:",
        "{{ bos_token }}User: {{ messages[0].content | trim }}\n\nAssistant:",
        "User: {% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}{{ '\n\n' }}Assistant:",
        "User: {{ messages[0]['content'][0]['text'].strip() }}\n\nAssistant:",
        "{% set c = messages[0].content %}User: {{ c if c is string else c[0].text }}\n\nAssistant:",
    ],
)
def test_templates_may_take_strings_or_parts(tokenizer, template):
    tokenizer.chat_template = template
    assert ids_of("  a red circle\n", tokenizer) == whole(OLD, tokenizer)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no words", "got a text without them"),
        ("{% for m in messages %}", "got .*end"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "got a text without them"),
        ("{{ raise_exception('no system prompt') }}", "got no system prompt"),
        ("{{ 1 // 0 }}", "got .*zero"),
    ],
)
def test_templates_that_do_not_print_the_words(tokenizer, template, message):
    tokenizer.chat_template = template
    with pytest.raises(
        ValueError, match=f"tokenizer must have a chat template that prints the words .* once, {message}"
    ):
        ids_of("a red circle", tokenizer)


SPECIAL = ["<begin_of_image>", "<end_of_image>", "<|User|>", "<|Assistant|>", "<image_placeholder>", PAD]


@given(st.lists(st.sampled_from([*SPECIAL, "a red circle", " ", "<", "|", "<|", "_"]), min_size=1, max_size=6))
@example(["<<|User|>"])
@example(["<begin_of_image> a"])
def test_special_tokens_among_the_words_are_plain_text(mini, pieces):
    words = "".join(pieces)
    if words.endswith("<begin_of_image>"):
        words += "."
    ids = ids_of(words, mini.tokenizer)
    names = mini.tokenizer.convert_ids_to_tokens(ids)
    frame = mini.tokenizer.convert_ids_to_tokens(ids_of("x", mini.tokenizer))
    assert [name for name in names if name in SPECIAL] == [name for name in frame if name in SPECIAL]
    text = mini.tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False)
    assert text == f"<|User|>: {words.strip()}\n\n<|Assistant|>:<begin_of_image>"


def test_a_prompt_that_ends_with_begin_of_image_is_taken_as_it_is(mini):
    assert ids_of(PRO, mini.tokenizer) == whole(PRO, mini.tokenizer) == ids_of("a red circle", mini.tokenizer)


def test_words_without_special_tokens_are_encoded_with_their_frame(mini):
    for words in ["a large red circle on white", "", "  x ", "ein roter Kreis, 赤い円 😀"]:
        text = f"<|User|>: {words.strip()}\n\n<|Assistant|>:<begin_of_image>"
        assert ids_of(words, mini.tokenizer) == whole(text, mini.tokenizer)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a \ud800 circle", r"prompts must be valid Unicode, got 'a \\ud800 circle'"),
        ("x" * 300_000, "prompts must have at most 200000 characters each, got one of 300000"),
    ],
)
def test_prompts_that_cannot_be_encoded(mini, prompt, message):
    with pytest.raises(ValueError, match=message):
        ids_of(prompt, mini.tokenizer)


@pytest.mark.parametrize("pad", [None, "<｜end▁of▁sentence｜>"])
def test_the_pad_of_the_unconditional_row_is_not_the_tokenizers(mini, tokenizer, pad):
    tokenizer.pad_token = pad
    assert JanusPrompts(tokenizer).special.pad == mini.tokenizer.get_vocab()[PAD]


def test_a_tokenizer_without_the_tokens_of_janus_pro_gets_the_first_template(tokenizer):
    tokenizer.chat_template = None
    content = tokenizer.backend_tokenizer.to_str().replace("<|User|>", "<|Nobody|>")
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(content)
    assert ids_of("a red circle", tokenizer) == whole(OLD, tokenizer)
