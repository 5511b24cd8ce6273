"""Checkpoints of all families: a whole one loads, and a damaged one says so in one line that names file and tensors."""

import json
import os
import re
import resource
import shutil
import sys
import time
from functools import reduce
from operator import getitem

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.cli import app as cli
from janus_dola.models.checkpoint.load import load_skeleton
from janus_dola.models.checkpoint.reading import UnreadableModelError
from janus_dola.models.families.emu3 import EMU3
from janus_dola.models.families.janus_prompts import PAD
from tests.bounds import bounded
from tests.janus_dola import emu3

JANUS_FORMS = ["bin", "sharded bin", "safetensors", "transformers"]
FORMS = [*JANUS_FORMS, "emu3"]
SAFETENSORS = dict.fromkeys(["safetensors", "transformers", "emu3"], "model.safetensors")
WEIGHTS = {"bin": "pytorch_model.bin", **SAFETENSORS}


@pytest.fixture(scope="session")
def whole(deepseek, tmp_path_factory):
    """A folder with a small model for each form, to be copied from; those of Janus hold the same one."""
    folders = {form: tmp_path_factory.mktemp("whole") / form for form in FORMS}
    for form in JANUS_FORMS[:-1]:
        deepseek.model.save(folders[form], deepseek.tokenizer, form)
    loaded = JanusDoLa.from_pretrained(folders["bin"], device="cpu")
    loaded.model.save_pretrained(folders["transformers"])
    loaded.tokenizer.save_pretrained(folders["transformers"])
    emu3_in_memory().model.save_pretrained(folders["emu3"])
    emu3_in_memory().tokenizer.save_pretrained(folders["emu3"])
    return folders


def emu3_in_memory():
    """Its weights fit into float16."""
    tokenizer = emu3.tokenizer()
    model = emu3.model(tokenizer)
    for parameter in model.parameters():
        parameter.data = parameter.half().float()
    return JanusDoLa(model, tokenizer)


@pytest.fixture
def folder(whole, tmp_path):
    """Copies one of them."""
    return lambda form: shutil.copytree(whole[form], tmp_path / form)


def edit_weights(path, edit):
    if path.suffix == ".safetensors":
        save_file(edit(load_file(path)), path, metadata={"format": "pt"})
    else:
        torch.save(edit(torch.load(path)), path)


def edit_json(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def load(folder):
    return JanusDoLa.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("form", JANUS_FORMS)
def test_checkpoint_draws_what_the_model_in_memory_draws(form, whole, deepseek):
    loaded = load(whole[form])
    assert type(loaded.model).__name__ == "JanusForConditionalGeneration"
    assert loaded.image_model.image_tokens == deepseek.image_model.image_tokens
    for config in (None, DoLaConfig()):
        expected = deepseek.generate(["a red circle", "x"], 2, dola=config, seed=5)
        drawn = loaded.generate(["a red circle", "x"], 2, dola=config, seed=5)
        assert torch.equal(drawn.tokens, expected.tokens)
        assert torch.equal(drawn.premature_layers, expected.premature_layers)
    codes = torch.arange(32).reshape(2, 16)
    pixels = [pipe.image_model.to_pixels(codes).detach() for pipe in (loaded, deepseek)]
    assert torch.allclose(*pixels, atol=1e-4)
    ours, theirs = loaded.model.state_dict(), deepseek.model.state_dict()
    assert torch.equal(ours["lm_head.weight"], theirs["language_model.lm_head.weight"])
    tower = "vision_model.vision_tower.blocks.1.attn.qkv.weight"
    split = [ours[f"model.vision_model.encoder.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(torch.cat(split), theirs[tower])


def test_an_emu3_folder_draws_what_the_model_in_memory_draws(whole):
    in_memory = emu3_in_memory()
    for dtype in ("float32", "float16"):  # packed on a CPU that can
        loaded = JanusDoLa.from_pretrained(whole["emu3"], device="cpu", dtype=dtype)
        assert type(loaded.model).__name__ == "Emu3ForConditionalGeneration"
        assert loaded.image_model.stored_as == dtype
        for config in (None, DoLaConfig()):
            drawn, expected = (
                pipe.generate(["a red circle", "x"], 2, dola=config, seed=5) for pipe in (loaded, in_memory)
            )
            assert torch.equal(drawn.tokens, expected.tokens)
            assert torch.equal(drawn.premature_layers, expected.premature_layers)
    assert torch.equal(loaded.to(dtype="float32").generate("x", seed=5).tokens, in_memory.generate("x", seed=5).tokens)
    quantized = JanusDoLa.from_pretrained(whole["emu3"], device="cpu", quantize="int8")
    assert quantized.generate("x", seed=5).tokens.shape == (1, 1, 20)


def test_an_emu3_folder_is_checked_and_drawn_from_by_the_command_line(folder, whole, tmp_path, monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["janus-dola", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.run(cli.app)
        return stop.value.code or 0, capsys.readouterr().out.splitlines()

    there = folder("emu3")
    (there / "model.safetensors").unlink()
    JanusDoLa.check(there, "cpu", prompts=["a red circle"])
    with pytest.raises(ValueError, match="prompts must leave room for 23 image tokens: at most 137 tokens each"):
        JanusDoLa.check(there, "cpu", prompts=["word " * 60])
    status, lines = call("info", there)
    shape = {"family": "emu3", "image codes (V)": "48", "codes per image": "20", "image size": "10 x 8 pixels"}
    assert status == 0
    assert shape.items() <= {line[:26].strip(): line[26:] for line in lines}.items()
    status, paths = call("generate", "a red circle", "--model", whole["emu3"], "--outdir", tmp_path, "--map")
    assert status == 0
    assert {Image.open(path).size for path in paths} == {(10, 8), (832, 376)}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda config: config.update(image_area="large"), "image_area must be an int in 1 .. 268435456, got 'large'"),
        (lambda config: config.update(image_area=1), "image_area and ratio must make at least one code, got 1 and '5:4'"),
        (lambda config: config.update(ratio="wide"), 'ratio must be WIDTH:HEIGHT, such as "4:3", got \'wide\''),
        (lambda config: config.update(image_area=40_000), "an image of 112 x 89 codes must leave room for .* in 160 pos"),
        (lambda config: config.update(vocabulary_map={}), "vocabulary_map must have tokens for 48 codes, one after"),
        (lambda config: config["vocabulary_map"].pop("<|extra_200|>"), "and the token that ends lines .* got .* None"),
        (lambda config: config["text_config"].update(vocab_size=300), "must have 48 codes .* among 300 tokens"),
        (lambda config: config["vq_config"].update(codebook_size=10**9), "must have tokens for 1000000000 codes"),
    ],
)  # fmt: skip
def test_an_emu3_whose_config_cannot_draw(folder, edit, message):
    there = folder("emu3")
    edit_json(there / "config.json", edit)
    for read in (load, load_skeleton):
        with pytest.raises(UnreadableModelError, match=f"config.json describes no Emu3: .*{message}"):
            read(there)


def test_transformers_own_generate_draws_images_with_a_deepseek_folder(whole):
    pipe = load(whole["bin"])
    ids = torch.tensor([pipe.encode("a red circle")[0].conditional])
    torch.manual_seed(3)
    theirs = pipe.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_mode="image", do_sample=True, top_k=0
    )
    torch.manual_seed(3)
    assert torch.equal(theirs, pipe.generate("a red circle", dola=None, seed=None, sampler="multinomial").tokens[0])
    assert len(theirs.unique()) > 2


MISSING = "does not hold the weights of the (Janus|Emu3) in its config.json; missing: "


@pytest.mark.parametrize("form", ["bin", "safetensors", "transformers"])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("gen_head.vision_head.bias", "model.generation_head.vision_head.bias"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("gen_vision_model.decoder.conv_out.bias", "model.vqmodel.decoder.conv_out.bias"),
        ("gen_vision_model.encoder.conv_out.bias", "model.vqmodel.encoder.conv_out.bias"),
        ("vision_model.vision_tower.norm.weight", "model.vision_model.post_layernorm.weight"),
        ("aligner.layers.2.weight", "model.aligner.hidden_layers.0.weight"),
    ],
)  # fmt: skip
def test_one_missing_tensor_is_named(folder, form, theirs, ours):
    name = ours if form == "transformers" else theirs
    there = folder(form)
    edit_weights(there / WEIGHTS[form], lambda weights: {key: weight for key, weight in weights.items() if key != name})
    # Where DeepSeek's tensor tells a shape or a depth, it is missed before it has its new name.
    with pytest.raises(UnreadableModelError, match=f"{MISSING}{ours}$|{re.escape(str(there))}"):
        load(there)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("text_model.lm_head.weight", "lm_head.weight"),
        ("text_model.model.layers.1.mlp.up_proj.weight", "model.text_model.layers.1.mlp.up_proj.weight"),
        ("vqmodel.decoder.conv_out.bias", "model.vqmodel.decoder.conv_out.bias"),
        ("vqmodel.decoder.time_res_stack.0.norm1.num_batches_tracked", None),
    ],
)
@pytest.mark.parametrize("new_names", [False, True])
def test_tensors_of_an_emu3_are_named_as_transformers_names_them(folder, theirs, ours, new_names):
    there, rename = folder("emu3"), EMU3.rename if new_names else dict
    ours = ours or f"model.{theirs}"

    def without(weights):
        return rename({name: weight for name, weight in weights.items() if name != theirs})

    def wrong(weights):
        return rename({**weights, theirs: weights[theirs][None], "extra": torch.zeros(2)})

    whole = load_file(there / WEIGHTS["emu3"])
    edit_weights(there / WEIGHTS["emu3"], without)
    with pytest.raises(UnreadableModelError, match=f"{MISSING}{ours}$"):
        load(there)
    save_file(wrong(whole), there / WEIGHTS["emu3"], metadata={"format": "pt"})
    with pytest.raises(UnreadableModelError, match=rf"; unexpected: extra; mismatched: {ours} \[.*\] in place of \["):
        load(there)
    save_file(rename(whole), there / WEIGHTS["emu3"], metadata={"format": "pt"})
    load(there)


@pytest.mark.parametrize("form", ["bin", "safetensors", "transformers"])
def test_what_is_missing_extra_or_of_another_shape_is_named(folder, form):
    head = "model.generation_head" if form == "transformers" else "gen_head"
    there = folder(form)
    edit_weights(
        there / WEIGHTS[form],
        lambda weights: {
            **{name: weight for name, weight in weights.items() if "norm1" not in name and "layer_norm1" not in name},
            f"{head}.vision_head.bias": torch.zeros(3),
            "extra": torch.zeros(2),
        },
    )
    with pytest.raises(UnreadableModelError) as raised:
        load(there)
    assert re.search(r"missing: model.*norm1.* and \d+ more; unexpected: extra; mismatched: ", str(raised.value))
    assert "mismatched: model.generation_head.vision_head.bias [3] in place of [48]" in str(raised.value)


@pytest.mark.parametrize(("form", "layers"), [("bin", 6), ("safetensors", 6), ("transformers", 6), ("emu3", 4)])
@pytest.mark.parametrize(
    ("more", "message"), [(1, "missing: .*layers.{}"), (-1, "unexpected: .*layers.{}"), (10**9, "more layers")]
)
def test_another_number_of_layers_in_the_config(folder, form, layers, more, message):
    there = folder(form)
    text = "language_config" if form in ("bin", "safetensors") else "text_config"
    edit_json(there / "config.json", lambda config: config[text].update(num_hidden_layers=layers + more))
    with pytest.raises(UnreadableModelError, match=message.format(layers + min(more, 0))):
        load(there)


@pytest.mark.parametrize(
    ("form", "theirs", "ours"),
    [
        ("bin", "gen_embed.weight", "model.generation_embeddings.weight"),
        ("transformers", "model.generation_embeddings.weight", "model.generation_embeddings.weight"),
        ("emu3", "text_model.model.norm.weight", "model.text_model.norm.weight"),
    ],
)
def test_weights_of_integers_are_no_weights(folder, form, theirs, ours):
    there = folder(form)
    edit_weights(there / WEIGHTS[form], lambda weights: {**weights, theirs: weights[theirs].int()})
    with pytest.raises(UnreadableModelError, match=f"not numbers: {ours}"):
        load(there)


@pytest.mark.parametrize("form", ["bin", "safetensors", "transformers"])
def test_tensors_of_published_checkpoints_that_no_one_needs_are_left_out(folder, whole, form):
    inner = "model.language_model" if form == "transformers" else "language_model.model"
    more = {
        f"{inner}.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
        "vision_model.vision_tower.attn_pool.latent": torch.zeros(1, 1, 64),
        "gen_vision_model.quantize.codebook_used": torch.zeros(48),
    }
    there = folder(form)
    edit_weights(there / WEIGHTS[form], lambda weights: {**weights, **more})
    assert torch.equal(load(there).generate("x", seed=5).tokens, load(whole[form]).generate("x", seed=5).tokens)


@pytest.mark.parametrize("form", ["bin", "transformers"])
@pytest.mark.parametrize("there_too", [True, False])
def test_a_tied_head_may_be_there_or_not(folder, form, there_too):
    there = folder(form)
    head, text = ("lm_head.weight", "text_config")
    if form == "bin":
        head, text = (f"language_model.{head}", "language_config")

    def tie(config):
        config[text]["tie_word_embeddings"] = config["tie_word_embeddings"] = True

    edit_json(there / "config.json", tie)
    edit_weights(
        there / WEIGHTS[form],
        lambda weights: {name: weight for name, weight in weights.items() if there_too or name != head},
    )
    model = load(there).model
    if not there_too:
        assert torch.equal(model.lm_head.weight, model.model.language_model.embed_tokens.weight)


@pytest.mark.parametrize("form", FORMS)
def test_stray_files_beside_the_weights_are_not_read(folder, whole, form):
    there = folder(form)
    save_file({"gen_embed.weight": torch.zeros(48, 8), "extra": torch.zeros(1)}, there / "zzz.safetensors")
    torch.save({"gen_embed.weight": torch.zeros(48, 8)}, there / "pytorch_model-00009-of-00009.bin")
    assert torch.equal(load(there).generate("x", seed=5).tokens, load(whole[form]).generate("x", seed=5).tokens)


FIRST, SECOND = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda places: places.update(extra=FIRST), f"{FIRST} must hold what the index of .* says; they differ in extra"),
        (lambda places: places.pop(min(places)), f"{FIRST} must hold .*; they differ in aligner.layers.0.bias"),
        (lambda places: places.update({min(places): SECOND}), "must hold .*; they differ in aligner.layers.0.bias"),
        (lambda places: places.update(extra="third.bin"), "names files that are not there: third.bin"),
        (lambda places: places.update(extra="../third.bin"), "must name files of its folder, got '../third.bin' for"),
        (lambda places: places.update(extra=5), "must name files of its folder, got 5 for 'extra'"),
        (lambda places: places.clear(), "must hold the object weight_map, got {}"),
    ],
)  # fmt: skip
def test_an_index_must_agree_with_its_files(folder, edit, message):
    there = folder("sharded bin")
    edit_json(there / "pytorch_model.bin.index.json", lambda index: edit(index["weight_map"]))
    with pytest.raises(UnreadableModelError, match=message):
        load(there)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "is an HTML page, not the file itself: download it again"),
        (b"", "is empty"),
        (b"\0" * 1000, "is no|is not JSON"),
        (b"[]", "is no|must hold a JSON object, got a list"),
        (b"[" * 100_000, "is no|is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is no|is not JSON"),
        (None, "has no|holds neither|names files that are not there"),
    ],
)
def test_what_lies_in_place_of_a_file_is_named(folder, form, content, message):
    there = folder(form)
    optional = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"}
    for path in sorted(there.iterdir()):
        before = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        elif path.name in optional or path.suffix == ".jinja":
            path.write_bytes(before)
            continue
        if path.suffix == ".jinja" and content not in (None, b"") and not content.startswith((b"<", b"version")):
            path.write_bytes(before)  # any text is a template
            continue
        with pytest.raises((UnreadableModelError, FileNotFoundError), match=message) as raised:
            load(there)
        assert "\n" not in str(raised.value)
        assert str(path) in str(raised.value) or content is None
        path.write_bytes(before)
    load(there)


@pytest.mark.parametrize("form", FORMS)
def test_a_pipe_or_folder_in_place_of_a_file_is_not_waited_for(folder, form):
    there = folder(form)
    for path in sorted(there.iterdir()):
        content = path.read_bytes()
        for make in (os.mkfifo, os.mkdir):
            path.unlink()
            make(path)
            with pytest.raises(
                (UnreadableModelError, FileNotFoundError), match="is no file|has no|holds neither|not there"
            ):
                load(there)
            (os.rmdir if path.is_dir() else os.unlink)(path)
            path.write_bytes(content)


@pytest.fixture
def status_of(monkeypatch, capsys):
    """Runs the command line in this process; returns exit status, seconds and the lines on stderr."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["janus-dola", *map(str, arguments)])
        begin = time.perf_counter()
        try:
            cli.run(cli.app)
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        return status, time.perf_counter() - begin, capsys.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize("form", FORMS)
def test_every_truncation_of_every_file_is_one_line(whole, form, tmp_path, status_of):
    names = sorted(path.name for path in whole[form].iterdir() if path.suffix != ".jinja")  # half a template is one

    @settings(max_examples=25, deadline=None)
    @given(st.sampled_from(names), st.floats(0, 1))
    def check(name, share):
        there = tmp_path / "cut"
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(whole[form], there)
        size = (there / name).stat().st_size
        end = (there / name).read_bytes().rstrip()
        os.truncate(there / name, min(int(share * size), len(end) - 1))
        for command in (["generate", "x", "--model", there, "--outdir", tmp_path], ["info", there]):
            status, seconds, lines = status_of(*command)
            if command[0] == "info" and status == 0:  # which has no use for this file
                assert name == "tokenizer.json" or "model" in name
                continue
            assert status in (1, 2)
            assert len(lines) == 1
            assert lines[0].startswith("janus-dola: error: ")
            assert str(there) in lines[0]
            assert seconds < 5

    check()


def keys_of(content, above=()):
    """Where values stand in a JSON object, down to four keys; of the vocabulary a few."""
    for key in list(content)[:60] if len(content) > 200 else content:
        yield (*above, key)
        if isinstance(content[key], dict) and len(above) < 3:
            yield from keys_of(content[key], (*above, key))


VALUES = (
    st.sampled_from([None, True, -1, 0, 3, 10**9, 1.5, 1e308, "x", [], {}, [1], {"a": 1}]) | st.integers() | st.floats()
)
ODD = [
    ("tokenizer_config.json", ("model_max_length",), {}),
    (
        "tokenizer.json",
        ("post_processor",),
        {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
    ),
]


@pytest.mark.parametrize("form", ["safetensors", "transformers", "emu3"])
def test_every_json_value_for_every_key_of_a_checkpoint(whole, form, tmp_path, status_of):
    there = tmp_path / "edited"
    files = {path.name: json.loads(path.read_text()) for path in sorted(whole[form].glob("*.json"))}
    places = [(name, keys) for name, content in files.items() for keys in keys_of(content)]
    inner = "language_config" if form == "safetensors" else "text_config"
    positions = ("config.json", (inner, "max_position_embeddings"), 10**9)

    def check(edit):
        name, keys, value = edit
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(whole[form], there)
        edit_json(there / name, lambda content: reduce(getitem, keys[:-1], content).update({keys[-1]: value}))
        with bounded():
            status, _, lines = status_of("generate", "x", "--model", there, "--outdir", tmp_path)
        if status:
            assert status in (1, 2)
            assert len([line for line in lines if not line.startswith("janus-dola: warning")]) == 1
            assert lines[-1].startswith("janus-dola: error: ")
        statuses.append(status)

    statuses = []
    for edit in (*ODD, positions):
        check(edit)
    assert statuses == [2, 2, 2]
    edits = st.sampled_from(places).flatmap(lambda place: st.tuples(st.just(place[0]), st.just(place[1]), VALUES))
    settings(max_examples=25, deadline=None, database=None)(given(edits)(check))()


def test_checkpoint_with_code_in_it_is_refused(folder):
    class Surprise:
        def __reduce__(self):
            return (print, ("this must never be printed",))

    there = folder("bin")
    torch.save({"surprise": Surprise()}, there / "pytorch_model.bin")
    with pytest.raises(UnreadableModelError, match="is no file of tensors that .*weights_only=True.* reads"):
        load(there)
    for content in ({"model": {"a": torch.zeros(1)}}, [torch.zeros(1)], torch.zeros(1)):
        torch.save(content, there / "pytorch_model.bin")
        with pytest.raises(UnreadableModelError, match=r"pytorch_model.bin must hold a dict of tensors"):
            load(there)


def test_folders_without_what_is_needed(folder, tmp_path):
    there = folder("bin")
    (there / "pytorch_model.bin").unlink()
    with pytest.raises(
        FileNotFoundError, match="holds neither model.safetensors nor pytorch_model.bin, nor an index of"
    ):
        load(there)
    (there / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json: copy tokenizer.json, tokenizer_config.json"):
        load(there)
    (there / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config.json$"):
        load(there)
    (there / "janus.gguf").write_bytes(b"GGUF")
    with pytest.raises(FileNotFoundError, match=r"has no config.json; GGUF is not read: take the checkpoint"):
        load(there)
    with pytest.raises(
        FileNotFoundError, match=r"must be a folder with a checkpoint, got the file .*janus.gguf; GGUF is"
    ):
        load(there / "janus.gguf")
    (there / "adapter_config.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"holds a PEFT adapter: merge it into its model first \(merge_and_unload"
    ):
        load(there)


@pytest.mark.parametrize("name", ["no-such-folder/no-such-model", "bert", "a/b/c", "./nowhere", ""])
def test_model_that_is_not_there(name):
    with pytest.raises(
        FileNotFoundError, match=f"there is no folder '{name}'|model '{name}' is no folder here|no config.json"
    ):
        JanusDoLa.from_pretrained(name)


def test_checkpoint_of_another_kind(folder):
    there = folder("bin")
    (there / "config.json").write_text('{"model_type": "llama"}')
    allowed = 'of Janus or Emu3.*, with one of the model types "janus", "multi_modality", "emu3".*'
    with pytest.raises(ValueError, match=f"must be a checkpoint {allowed}, got 'llama'"):
        load(there)


@pytest.mark.parametrize(("form", "name", "tokens"), [("transformers", "Janus", 332), ("emu3", "Emu3", 313)])
def test_a_model_with_the_tokenizer_of_a_larger_one(folder, form, name, tokens):
    there = folder(form)
    edit_json(
        there / "tokenizer.json",
        lambda content: content["added_tokens"].append(
            {**content["added_tokens"][-1], "id": tokens, "content": "<more>"}
        ),
    )
    with pytest.raises(
        UnreadableModelError,
        match=f"must hold model and tokenizer of one {name}: {tokens} embeddings, token {tokens}",
    ):
        load(there)


@pytest.mark.parametrize("pad", [None, "<｜end▁of▁sentence｜>"])
def test_a_deepseek_folder_pads_as_deepseeks_processor_does(folder, deepseek, pad):
    there = folder("bin")
    edit_json(there / "tokenizer_config.json", lambda config: config.update(pad_token=pad))
    loaded = load(there)
    assert loaded.tokenizer.pad_token == pad
    assert loaded.prompts.special.pad == deepseek.tokenizer.get_vocab()[PAD]
    assert torch.equal(loaded.generate("x", seed=5).tokens, deepseek.generate("x", seed=5).tokens)


@pytest.mark.parametrize(("sft_format", "frame"), [("deepseek", "<|User|>: x"), ("deepseek_old", "User: x")])
def test_the_sft_format_of_a_deepseek_folder_chooses_the_template(folder, sft_format, frame):
    there = folder("bin")
    (there / "chat_template.jinja").unlink()
    (there / "processor_config.json").write_text(json.dumps({"sft_format": sft_format, "num_image_tokens": 576}))
    loaded = load(there)
    assert loaded.tokenizer.decode(loaded.encode("x")[0].conditional[1:]).startswith(frame)


def test_info_looks_at_a_checkpoint_whose_parts_name_a_dtype(folder, status_of, capsys):
    there = folder("transformers")
    edit_json(there / "config.json", lambda config: config["text_config"].update(dtype="bfloat16"))
    assert status_of("info", there)[0] == 0
    assert {weight.dtype for weight in load_skeleton(there).parameters()} == {torch.float32}
    assert load(there).image_model.dtype == torch.float32


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_info_reads_no_weights_of_a_deepseek_folder(folder, form, deepseek):
    there = folder(form)
    huge = 2**32  # bytes, of a file with a hole
    if form == "safetensors":
        content = (there / "model.safetensors").read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        end = len(content) - 8 - size
        header["filler"] = {"dtype": "U8", "shape": [huge], "data_offsets": [end, end + huge]}
        written = json.dumps(header).encode()
        (there / "model.safetensors").write_bytes(len(written).to_bytes(8, "little") + written + content[8 + size :])
        os.truncate(there / "model.safetensors", 8 + len(written) + end + huge)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = load_skeleton(there)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    assert model.model.vision_model.config.num_image_tokens == deepseek.image_model.image_tokens
    assert model.model.generation_embeddings.weight.shape == (48, 8)
    assert model.device.type == "meta"


PUBLISHED = {
    "model_type": "multi_modality",
    "aligner_config": {"cls": "MlpProjector", "params": {"depth": 2, "input_dim": 1024, "n_embed": 4096}},
    "gen_aligner_config": {"cls": "MlpProjector", "params": {"depth": 2, "input_dim": 8, "n_embed": 4096}},
    "gen_head_config": {
        "cls": "vision_head",
        "params": {"image_token_embed": 4096, "image_token_size": 16384, "n_embed": 4096},
    },
    "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 16384, "n_embed": 8}},
    "language_config": {"max_position_embeddings": 16384, "model_type": "llama", "num_hidden_layers": 30},
    "vision_config": {
        "cls": "CLIPVisionTower",
        "params": {"image_size": 384, "model_name": "siglip_large_patch16_384"},
    },
}


def test_info_needs_no_weights_of_a_published_deepseek_checkpoint(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    patterns = []
    monkeypatch.setattr(
        sys.modules["janus_dola.models.checkpoint.hub"],
        "snapshot_download",
        lambda name, **given: patterns.append(given["allow_patterns"]) or tmp_path,
    )
    monkeypatch.setattr("sys.argv", ["janus-dola", "info", "deepseek-ai/Janus-Pro-7B"])
    with pytest.raises(SystemExit):
        cli.run(cli.app)
    lines = {line[:26].strip(): line[26:] for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() >= {"threads on a CPU", "fastest dtype on a CPU"}
    shape = {
        "model": "deepseek-ai/Janus-Pro-7B",
        "family": "transformers",
        "blocks (N)": "30",
        "hidden size (D)": "4096",
        "head width (E)": "4096",
        "image codes (V)": "16384",
        "codes per image": "576",
        "image size": "384 x 384 pixels",
        "default candidate layers": "22, 24, 26, 28",
    }
    assert shape.items() <= lines.items()
    assert patterns == [["*.json", "*.jinja"]]
    edit_json(
        tmp_path / "config.json", lambda config: config["vision_config"]["params"].update(model_name="siglip_so400m")
    )
    with pytest.raises(UnreadableModelError, match="must name siglip_large_patch16_384 and VQ-16, got"):
        load_skeleton(tmp_path)


def test_a_device_that_is_not_there():
    for name in ("cuda:99", "gpu", "meta:x"):
        with pytest.raises(ValueError, match=f"device must be one that is here, got '{name}': "):
            JanusDoLa.from_pretrained("mini", device=name)
