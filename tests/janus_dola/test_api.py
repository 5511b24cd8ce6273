"""The Python API as its users meet it: outputs that say what they are and save themselves, doors, and forgiving numbers."""

import ast
import copy
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import janus_dola
from janus_dola import DoLaConfig, DrawnImage, JanusDoLa, SLEDConfig
from janus_dola.arguments import shown
from janus_dola.images.recipe import read_recipe
from janus_dola.kernels.packed import can_pack

ROOT = Path(__file__).parents[2]
PROMPTS = ["a large red circle on white", "a small blue square"]
SETTINGS = {"dola": DoLaConfig(alpha=0.2), "temperature": 0.9, "negative_prompt": "a green cross"}


@pytest.fixture(scope="module")
def out(mini):
    return mini(PROMPTS, 2, **SETTINGS, seed=np.int64(7))


def test_nothing_outside_the_class_uses_what_is_private_to_it(mini):
    """Whatever is asked of a pipe from outside has a public name."""
    private = {name for name in {*vars(JanusDoLa), *vars(mini)} if name.startswith("_") and not name.startswith("__")}
    private |= {"_prompt_ids", "_special", "_engine"}
    results = []
    for path in (path for room in ("janus_dola", "bench", "tests") for path in (ROOT / room).rglob("*.py")):
        own = path == Path(inspect.getfile(JanusDoLa))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in private and not own:
                of = ast.unparse(node.value)
                if of.split(".")[-1] not in ("self", "cls", "worker"):  # other classes' own
                    results.append(f"{path.relative_to(ROOT)}:{node.lineno}: {of}.{node.attr}")
    assert results == []


def test_no_module_of_the_api_is_long():
    lines = {
        path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "janus_dola").glob("*.py")
    }
    assert {name: count for name, count in lines.items() if count > 420} == {}


def test_scores_with_given_layers_contrast_with_these(mini, out):
    """Layer by layer those of DoLa-static, and without contrast where the final layer is given."""
    settings = SETTINGS | {"dola": DoLaConfig([2, 4, 6], alpha=0.2)}
    given = torch.tensor([2, 4, 6, 8])[torch.arange(64) % 4].expand(2, 2, 64)
    actual = mini.scores(PROMPTS, out.tokens, premature_layers=given, **settings)
    assert torch.equal(actual.premature_layers, given)
    log_probs = mini.log_probs(PROMPTS, out.tokens, premature_layers=given, **settings)
    for layer in (2, 4, 6, "final"):
        static = SETTINGS | {"dola": DoLaConfig(alpha=0.2, premature_layer=layer)}
        at = given == (8 if layer == "final" else layer)
        assert torch.allclose(mini.log_probs(PROMPTS, out.tokens, **static)[at], log_probs[at], atol=1e-4)
    assert (actual.jsd[..., 3::4] == 0).all()


@pytest.mark.parametrize(
    ("given", "contrast", "message"),
    [
        (
            torch.zeros(2, 2, 64).long() + 5,
            DoLaConfig(),
            r"premature_layers must be among \[2, 4, 6, 8\] .*, got \[5\]",
        ),
        (
            torch.zeros(2, 2, 64).long() + 4,
            None,
            r"premature_layers must be among \[8\] with these settings, got \[4\]",
        ),
        (torch.zeros(2, 64).long(), DoLaConfig(), r"tensor of the tokens' shape, \[2, 2, 64\], got \[2, 64\]"),
        ([4], DoLaConfig(), r"premature_layers must be a tensor of the tokens' shape, \[2, 2, 64\], got list"),
        (torch.zeros(2, 2, 64), DoLaConfig(), "premature_layers must be int64, got torch.float32"),
        (torch.zeros(2, 2, 64).long(), SLEDConfig(), "premature_layers must be None with the contrast 'sled'"),
    ],
)
def test_given_layers_are_checked(mini, out, given, contrast, message):
    with pytest.raises(ValueError, match=message):
        mini.log_probs(PROMPTS, out.tokens, contrast=contrast, premature_layers=given)


def test_rows_of_prompts(mini):
    first, second = mini.encode(PROMPTS)
    special = mini.prompts.special
    assert first.conditional[0] == first.unconditional[0] == special.bos
    assert first.conditional[-1] == first.unconditional[-1] == special.begin_of_image
    assert set(first.unconditional[1:-1]) == {special.pad}
    assert "a large red circle on white" in mini.tokenizer.decode(first.conditional)
    assert len(second.conditional) == len(second.unconditional) < len(first.conditional)
    away = mini.encode(PROMPTS[1], negative_prompt=PROMPTS[0])[0]
    assert away.unconditional == first.conditional
    assert len(away.conditional) == len(first.conditional)
    assert [id for id in away.conditional if id != special.pad] == second.conditional
    with pytest.raises(ValueError, match="prompts must leave room for 64 image tokens"):
        mini.encode("a circle " * 300)


def test_scores_are_what_the_codes_were_drawn_from(mini, out):
    actual = mini.scores(PROMPTS, out.tokens, **SETTINGS)
    assert actual.scores.shape == (2, 2, 64, 512)
    assert torch.allclose(actual.jsd, out.jsd, atol=1e-4)
    assert torch.equal(actual.premature_layers, out.premature_layers)
    of_codes = actual.log_distributions.gather(-1, out.tokens.unsqueeze(-1)).squeeze(-1)
    log_probs = mini.log_probs(PROMPTS, out.tokens, **SETTINGS)
    assert torch.allclose(of_codes, log_probs, atol=1e-6)
    assert torch.allclose(out.log_probs, log_probs, atol=1e-4)
    given = mini.log_probs(PROMPTS, out.tokens, premature_layers=out.premature_layers, **SETTINGS)
    assert torch.equal(given, log_probs)
    greedy = mini.scores(PROMPTS[0], out.tokens[:1, :1], dola=None, temperature=0)
    assert (greedy.premature_layers == 8).all()
    assert greedy.log_distributions.exp().sum(-1).tolist() == [[[1.0] * 64]]
    with pytest.raises(ValueError, match=r"tokens must be of shape \[2, images, 64\], got \[1, 2, 64\]"):
        mini.scores(PROMPTS, out.tokens[:1])


def test_outputs_say_what_they_are(mini, out):
    assert repr(mini) == "JanusDoLa('mini', float32 on cpu)"
    assert repr(out).startswith(
        "GenerationOutput(P=2, K=2, 64x64 pixels, 8x8 codes, seeds 7..10, DoLa alpha 0.2, layers auto, cfg 5, T 0.9, "
        "away from 'a green cross', mean JSD 0."
    )
    assert len(repr(out)) < 250
    one = mini.generate("x" * 99, seed=2**40, dola=None).drawn[0][0]
    assert repr(one).startswith(
        f"DrawnImage(prompt 0 {shown('x' * 99)}, k=0, 64x64 pixels, 8x8 codes, seed {2**40}, baseline"
    )
    assert isinstance(one, DrawnImage)
    assert "seeds 3, 1, 2 " not in repr(mini(PROMPTS[0], 3, seed=[3, 1, 2]))
    assert "seeds 3, 1, 2, DoLa" in repr(mini(PROMPTS[0], 3, seed=[3, 1, 2]))


def test_images_are_saved_with_what_draws_them_again(mini, out, tmp_path):
    files = out.save(tmp_path / "new" / "folder")
    assert [file.name for file in files] == [
        f"{i}_{words}_p{k}.png"
        for i, words in enumerate(("a_large_red_circle_on_white", "a_small_blue_square"))
        for k in range(2)
    ]
    recipe = read_recipe(files[3])
    assert (recipe.model, recipe.prompt, recipe.seed, recipe.dtype) == ("mini", PROMPTS[1], 10, "float32")
    again = mini(recipe.prompt, seed=recipe.seed, **SETTINGS)
    assert torch.equal(again.tokens[0, 0], out.tokens[1, 1])
    assert np.array_equal(np.asarray(Image.open(files[3])), np.asarray(again.images[0][0]))


def test_no_file_is_replaced_unless_that_is_wished(mini, out, tmp_path):
    files = out.save(tmp_path)
    kept = files[1].read_bytes()
    baseline = mini(PROMPTS, 2, dola=None)
    files[0].unlink()
    with pytest.raises(FileExistsError, match=r".*_p1.png and 2 more would be replaced: .*overwrite=True"):
        baseline.save(tmp_path)
    assert not files[0].exists()
    assert files[1].read_bytes() == kept
    with pytest.raises(FileExistsError, match="would be replaced"):
        baseline.drawn[0][1].save(files[1])
    assert baseline.save(tmp_path, overwrite=True) == files
    assert read_recipe(files[1]).settings.contrast is None
    with pytest.raises(ValueError, match="format must be one of"):
        baseline.drawn[0][0].save(tmp_path / "image.gif")
    assert not (tmp_path / "image.gif").exists()


def test_no_link_is_followed(out, tmp_path):
    other = tmp_path / "other.png"
    other.write_bytes(b"precious")
    link = tmp_path / "link.png"
    link.symlink_to(other)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="link.png is a link, which is not followed"):
            out.drawn[0][0].save(str(link), overwrite)
    assert other.read_bytes() == b"precious"


def test_an_image_that_its_seed_does_not_draw_carries_no_recipe(mini, tmp_path):
    drawn = mini(PROMPTS[0], sampler="multinomial", seed=3).drawn[0][0]
    path = drawn.save(tmp_path / "image.webp")
    with pytest.raises(ValueError, match="carries no recipe"):
        read_recipe(path)


def test_numbers_of_numpy_are_numbers_in_a_config():
    config = DoLaConfig(np.arange(2, 7, 2), np.float32(0.5), np.int8(4))
    assert config == DoLaConfig([2, 4, 6], 0.5, 4)
    assert hash(config) == hash(DoLaConfig((2, 4, 6), 0.5, 4))
    assert json.dumps([config.candidate_layers, config.alpha, config.premature_layer]) == "[[2, 4, 6], 0.5, 4]"
    for bad in (5, [np.float64(2)], [True], np.array(3), {2, 4}):
        with pytest.raises(ValueError, match='candidate_layers must be "auto" or a list of ints'):
            DoLaConfig(bad)
    with pytest.raises(ValueError, match=r"alpha must be a finite number in \[0, 1\], got '0.1'"):
        DoLaConfig(alpha="0.1")


def test_numbers_of_numpy_are_numbers_in_every_call(mini, tmp_path):
    expected = mini(PROMPTS[0], 2, dola=DoLaConfig((2, 4), 0.5), cfg_weight=3.0, temperature=0.5, seed=[3, 9], window=4)
    config = DoLaConfig(np.array([2, 4]), np.float64(0.5))
    numbers = {"dola": config, "cfg_weight": np.float32(3), "temperature": np.float16(0.5)}
    for seeds in (np.array([3, 9]), torch.tensor([3, 9]), (np.uint8(3), np.int16(9))):
        actual = mini(PROMPTS[0], np.int8(2), **numbers, seed=seeds, window=np.int64(4))
        assert torch.equal(actual.tokens, expected.tokens)
    assert read_recipe(actual.save(tmp_path)[1]) == expected.drawn[0][1].recipe
    drawn = mini([PROMPTS[0]] * 2, **numbers, seed=np.array([3, 9]), window=np.int64(4), max_images=np.int8(2))
    assert torch.equal(drawn.tokens[:, 0], expected.tokens[0])
    (streamed,) = mini.stream(PROMPTS[0], np.int64(1), **{**numbers, "cfg_weight": np.int64(3)}, seed=np.uint64(3))
    assert torch.equal(streamed.tokens, expected.tokens[0, 0])
    with pytest.raises(ValueError, match="window must be"):
        mini(PROMPTS[0], window=4.0)


@pytest.mark.parametrize("dola", [True, False, 0.1, "auto"])
def test_dola_that_is_no_config_is_refused_by_name(mini, dola):
    for call in (mini, mini.stream):
        with pytest.raises(ValueError, match=f"dola must be a contrast such as DoLaConfig.., or None .*, got {dola!r}"):
            call("a red circle", dola=dola)


def test_names_of_the_package():
    names = {"DoLaConfig", "DrawnImage", "GenerationOutput", "JanusDoLa", "NonFiniteError", "SLEDConfig"}
    assert set(janus_dola.__all__) >= names
    assert all(hasattr(janus_dola, name) for name in janus_dola.__all__)


def state(pipe):
    return dict([*pipe.model.named_parameters(), *pipe.model.named_buffers()])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_that_was_moved_is_one_that_was_loaded_there(dtype):
    """Bit for bit, tables that are made and not loaded included; and it draws the same."""
    pipe = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32")
    before = pipe(PROMPTS[0], seed=3).tokens
    assert pipe.to(dtype=dtype) is pipe
    loaded = JanusDoLa.from_pretrained("mini", device="cpu", dtype=dtype)
    assert pipe.image_model.stored_dtype == loaded.image_model.stored_dtype == getattr(torch, dtype)
    actual, expected = state(pipe), state(loaded)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].dtype == expected[name].dtype, name
        assert torch.equal(actual[name], expected[name]), name
    out = pipe(PROMPTS[0], seed=3)
    assert torch.equal(out.tokens, loaded(PROMPTS[0], seed=3).tokens)
    assert out.drawn[0][0].recipe.dtype == dtype
    pipe.to("cpu", torch.float32)
    assert pipe.image_model.dtype == pipe.image_model.stored_dtype == torch.float32
    if dtype == "float16":  # in which the mini model's weights are kept
        assert torch.equal(pipe(PROMPTS[0], seed=3).tokens, before)


@pytest.mark.skipif(not can_pack(), reason="this torch has no FBGEMM")
def test_a_model_already_in_memory_is_moved_and_not_packed(mini, deepseek):
    for pipe in (mini, deepseek):
        own = JanusDoLa(copy.deepcopy(pipe.model), pipe.tokenizer).to("cpu", "float16")
        assert own.image_model.dtype == torch.float16
        assert own(PROMPTS[0]).tokens.shape == (1, 1, own.image_model.image_tokens)


def test_where_a_model_cannot_go(mini):
    with pytest.raises(ValueError, match="device must be one that is here, got 'nowhere'"):
        mini.to("nowhere")
    with pytest.raises(ValueError, match="dtype must be one of"):
        mini.to(dtype="int8")
    assert mini.image_model.dtype == torch.float32
