"""A family that draws an image small and then in full, in one row, with norms behind attention and MLP: GLM-Image."""

import base64
import json
import math

import httpx
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load, load_file

pytest.importorskip("transformers.models.glm_image", reason="needs transformers 5")

from transformers import GlmImageProcessor
from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.batch import RunSettings, run_batch
from janus_dola.cli import app as cli
from janus_dola.images.recipe import read_recipe
from janus_dola.kernels.contrast import jensen_shannon
from janus_dola.kernels.sampling import gumbel_max
from janus_dola.models import adapt, families
from janus_dola.models.families.glm_image import prior_token_ids
from janus_dola.models.model import Raster
from janus_dola.serve.service import ServerOptions, Service
from tests.janus_dola import glm_image
from tests.janus_dola.batch_helpers import lines, without_seconds
from tests.janus_dola.glm_image import CODES
from tests.janus_dola.server import running, until

PROMPTS = ["a red circle", " a large blue square,  赤い円 "]
DOLA = DoLaConfig(candidate_layers=[1, 2], alpha=0.1)


def pipe_of(height: int, width: int) -> JanusDoLa:
    tokenizer = glm_image.tokenizer()
    return JanusDoLa(glm_image.model(tokenizer, height, width), tokenizer)


@pytest.fixture(scope="module")
def pipe() -> JanusDoLa:
    return pipe_of(128, 256)


@pytest.fixture
def tiny(monkeypatch) -> JanusDoLa:
    """One of 2 x 5 and 2 x 4 codes, where the small image would have some 256."""
    monkeypatch.setattr(families.glm_image, "_SMALL", 4)
    return pipe_of(64, 128)


def by_its_processor(pipe: JanusDoLa, *prompts: str):
    """What transformers' own processor makes of prompts, with the arguments that diffusers' pipeline gives it."""
    height, width = pipe.model.config.target_h, pipe.model.config.target_w
    processor = GlmImageProcessor(
        GlmImageImageProcessorPil(), pipe.tokenizer, chat_template=pipe.tokenizer.chat_template
    )
    chats = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in prompts]
    return processor.apply_chat_template(
        chats, tokenize=True, padding=len(prompts) > 1, target_h=height, target_w=width, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(128, 128), (256, 160), (64, 576)])
def test_greedy_tokens_are_those_of_its_own_generate(height, width):
    pipe = pipe_of(height, width)
    given, length = by_its_processor(pipe, *PROMPTS), pipe.image_model.raster.length
    sequences = pipe.model.generate(
        **given, max_new_tokens=length, do_sample=False, prefix_allowed_tokens_fn=lambda *_: list(range(CODES))
    )
    expected = sequences[:, given["input_ids"].shape[1] :]
    assert all(len(each.unique()) > 10 for each in expected)
    for window in (1, 4, 8, 16):
        drawn = pipe.generate(PROMPTS, contrast=None, temperature=0.0, window=window)
        assert torch.equal(drawn.tokens[:, 0], expected)
        assert (drawn.passes == length - 1 if window == 1 else drawn.passes < length - 1).all()


def test_prompts_and_positions_are_its_own(pipe):
    for prompt in PROMPTS:
        given = by_its_processor(pipe, prompt)
        assert pipe.encode(prompt)[0].conditional == given["input_ids"][0].tolist()
        positions, _ = pipe.model.model.get_rope_index(
            given["input_ids"], given["image_grid_thw"], given["images_per_sample"]
        )
        length = positions.shape[-1]
        assert torch.equal(positions, torch.arange(length).expand(3, 1, length))
        assert torch.equal(pipe.model.model._cached_decode_position_ids[0, :, :-1] - length, pipe.image_model.positions)
    ids = pipe.encode("<|image|> and <|dit_token_3|>")[0].conditional
    assert pipe.tokenizer.decode(ids).startswith("<|image|> and <|dit_token_3|><sop>4 8<eop><sop>11 22<eop>")
    assert sum(number < CODES + 2 or number >= CODES + 2 + 256 for number in ids) == 5  # those of the frame


def by_formulas(model, ids, codes, seed, temperature):
    """From transformers' modules in float64: F [T, V] of each code, the layers and their JSD, and the codes drawn."""
    text, ids = model.model.language_model, torch.tensor(ids)
    raster = adapt(model).raster
    grids = torch.tensor([[1, raster.rows, raster.columns], [1, *raster.small]])
    model.model.get_rope_index(ids.unsqueeze(0), grids, torch.tensor([2]))
    positions = torch.cat(
        [torch.arange(len(ids)).expand(3, 1, -1), model.model._cached_decode_position_ids.transpose(0, 1)], -1
    )[..., : len(ids) + len(codes) - 1]
    states = text.embed_tokens(torch.cat([ids, codes[:-1]]).unsqueeze(0))
    around, causal, layers = (
        text.rotary_emb(states, positions),
        torch.full((states.shape[1],) * 2, -math.inf).triu(1),
        [],
    )
    for block in text.layers:
        states = block(states, position_embeddings=around, attention_mask=causal.to(states)[None, None])
        layers.append(states[0, len(ids) - 1 :])
    norm = text.norm
    hidden = torch.stack([layers[layer - 1] for layer in (*DOLA.candidate_layers, len(layers))])
    hidden = hidden * (hidden.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt() * norm.weight
    *early, final = torch.log_softmax(model.lm_head(hidden)[..., :CODES], -1)
    jsd = torch.stack([jensen_shannon(final, each) for each in early])
    chosen, places = jsd.argmax(0), torch.arange(len(codes))
    plausible = final >= final.amax(-1, keepdim=True) + math.log(DOLA.alpha)
    scores = torch.where(plausible, final - torch.stack(early)[chosen, places], -math.inf)
    drawn = gumbel_max(scores, temperature, torch.full((len(codes),), seed), places)
    return scores, torch.tensor(DOLA.candidate_layers)[chosen], jsd.amax(0), drawn


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_dola_follows_the_formulas(pipe, temperature):
    """Whatever the window, and whoever draws beside it; given its codes, in float64."""
    settings = {"contrast": DOLA, "temperature": temperature}
    drawn = pipe.generate(PROMPTS, seed=[7, 9], window=16, **settings)
    alone = pipe.generate(PROMPTS[1], seed=9, window=4, **settings)
    assert torch.equal(alone.tokens[0], drawn.tokens[1])
    assert torch.equal(alone.premature_layers[0], drawn.premature_layers[1])
    log_probs = pipe.log_probs(PROMPTS, drawn.tokens, **settings)
    if temperature:
        policy = pipe.policy(PROMPTS, drawn.tokens, premature_layers=drawn.premature_layers, **settings)
        assert torch.allclose(policy.log_probs, log_probs, atol=1e-3)
    wide = glm_image.model(pipe.tokenizer, 128, 256).double()
    for i, (prompt, seed) in enumerate(zip(PROMPTS, (7, 9), strict=True)):
        tokens = drawn.tokens[i, 0]
        scores, layers, jsd, codes = by_formulas(wide, pipe.encode(prompt)[0].conditional, tokens, seed, temperature)
        assert torch.equal(tokens, codes)
        assert torch.equal(drawn.premature_layers[i, 0], layers)
        assert torch.allclose(drawn.jsd[i, 0].double(), jsd, atol=1e-4)
        if temperature:
            expected = torch.log_softmax(scores, -1).gather(1, codes.unsqueeze(1)).squeeze(1)
            assert torch.allclose(log_probs[i, 0].double(), expected, atol=1e-3)
    assert len(drawn.premature_layers.unique()) > 1


def test_the_code_above_is_the_first_guess_in_both_images():
    raster = Raster(4, 6, small=(2, 3))
    assert raster.first_guesses(36).tolist() == [0, 0, 0, 0, 1, 2, *range(30)]


def test_a_tokenizer_of_another_family_is_refused(pipe, mini):
    with pytest.raises(ValueError, match="tokenizer must have a grid_bos_token; is it the tokenizer of this model?"):
        JanusDoLa(pipe.model, mini.tokenizer)


def test_nothing_guides(pipe):
    """So the default weight is 1 here; and an image is one row."""
    drawn = pipe.generate(PROMPTS[0], window=16)
    assert drawn.drawn[0][0].recipe.settings.cfg_weight == 1
    assert torch.equal(drawn.tokens, pipe.generate(PROMPTS[0], cfg_weight=1.0, window=16).tokens)
    for draw in (pipe.generate, pipe.stream, lambda *args, **changes: pipe.log_probs(*args, drawn.tokens, **changes)):
        with pytest.raises(ValueError, match="cfg_weight must be 1 for a model that nothing guides, got 3.0"):
            draw(PROMPTS[0], cfg_weight=3.0)
    with pytest.raises(ValueError, match="negative_prompt must be None for a model that nothing guides, got 'blurry'"):
        pipe.generate(PROMPTS[0], negative_prompt="blurry")


def test_codes_are_kept_where_another_model_paints(pipe, tmp_path):
    out = pipe.generate(PROMPTS, window=16)
    with pytest.raises(
        ValueError, match=r"this model draws codes, which another one paints: save them as \.safetensors"
    ):
        out.save(tmp_path)
    for path, tokens in zip(out.save(tmp_path, "safetensors"), out.tokens.flatten(0, 1), strict=True):
        assert torch.equal(load_file(path)["tokens"], tokens)
    raster = pipe.image_model.raster
    prior = prior_token_ids(out.tokens, raster)
    assert prior.shape == (2, 4 * raster.rows * raster.columns)
    assert torch.equal(prior.view(2, 8, 16)[:, ::2, ::2].flatten(1), out.tokens.flatten(0, 1)[:, 11 * 22 :])
    theirs = pytest.importorskip("diffusers.pipelines.glm_image.pipeline_glm_image").GlmImagePipeline
    for ids, tokens in zip(prior, out.tokens.flatten(0, 1), strict=True):
        sequence = torch.cat([torch.zeros(5, dtype=torch.int64), tokens]).unsqueeze(0)
        grids = torch.tensor([[1, raster.rows, raster.columns], [1, *raster.small]])
        length, offset, height, width = theirs._compute_generation_params(grids, is_text_to_image=True)
        assert length == len(tokens) + 1
        large = theirs._extract_large_image_tokens(sequence, 5, offset, height * width)
        assert torch.equal(theirs._upsample_token_ids(large, height, width)[0], ids)


def test_every_door_gives_the_same_codes(tiny, tmp_path):
    """Of a batch and of a server, by all contrasts; a folder that lost some of them ends as it was."""
    bare = {"dola": False, "top_p": 0.5, "top_k": 9}
    dola = {"candidate_layers": [1, 2], "alpha": 0.3}
    given = [{"prompt": PROMPTS[0], "seed": 7, **own} for own in ({}, bare, {"contrast": "sled"}, dola)]
    run = RunSettings(parallel_size=1, image_format="safetensors")
    assert run_batch(given, tmp_path, run, pipe=tiny).drawn == 4
    files = sorted(tmp_path.glob("*.safetensors"))
    whole, manifest = [file.read_bytes() for file in files], without_seconds(tmp_path)
    for content, file, own, line in zip(whole, files, given, lines(tmp_path), strict=True):
        (drawn,) = tiny.generate(own["prompt"], seed=7, settings=read_recipe(file).settings).drawn[0]
        assert content == drawn.encoded("safetensors")
        assert read_recipe(file) == drawn.recipe
        assert line["log_prob"] == pytest.approx(drawn.log_probs.sum().item(), abs=1e-3)
        held = load(content)
        assert held.keys() == {"tokens", "prior_token_ids"}
        assert torch.equal(held["prior_token_ids"], prior_token_ids(drawn.tokens, tiny.image_model.raster))
    assert len(set(whole)) == 4
    files[1].unlink()
    files[2].write_bytes(whole[2][:-1])
    with (tmp_path / "manifest.jsonl").open("r+b") as file:
        file.truncate(len(file.read()) - 1)  # the last line is no line
    files[3].unlink()
    summary = run_batch(given, tmp_path, run, pipe=tiny)
    assert (summary.drawn, summary.kept) == (3, 1)
    assert [file.read_bytes() for file in files] == whole
    assert without_seconds(tmp_path) == manifest
    service = Service(ServerOptions("glm"), lambda: tiny)
    with running(service) as url:
        until(lambda: service.ready())

        def ask(status=200, **fields):
            answer = httpx.post(f"{url}/v1/images/generations", json=fields, timeout=60)
            assert answer.status_code == status, answer.text
            return answer

        for fields, content in zip(given, whole, strict=True):
            answer = ask(**fields).json()
            assert base64.b64decode(answer["data"][0]["b64_json"]) == content
            assert (answer["output_format"], answer["data"][0]["settings"]["cfg_weight"]) == ("safetensors", 1)
        streamed = ask(**given[0], stream=True, layer_map=True, output_format="safetensors").text
        event = json.loads(streamed.partition("data: ")[2])
        assert base64.b64decode(event["b64_json"]) == whole[0]
        there = httpx.get(ask(**given[0], response_format="url").json()["data"][0]["url"])
        assert (there.content, there.headers["content-type"]) == (whole[0], "application/octet-stream")
        for fields, message in (
            (
                {"output_format": "png"},
                'must be \\"safetensors\\" for this model, whose codes another one paints, got \\"png',
            ),
            ({"partial_images": 2, "stream": True}, "partial_images must be 0 where an image is its codes"),
            ({"cfg_weight": 3}, "cfg_weight must be 1 for a model that nothing guides, got 3"),
        ):
            assert message in ask(400, prompt="x", **fields).text


def test_a_folder_draws_what_the_model_in_memory_draws(tiny, tmp_path, monkeypatch, capsys):
    """Alone, or as diffusers lays it beside the models that paint. So do the commands, which write codes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text(f"{PROMPTS[0]}\n")
    of_model, of_words = tmp_path / "all" / "vision_language_encoder", tmp_path / "all" / "processor"
    for parameter in tiny.model.parameters():  # its weights fit into float16
        parameter.data = parameter.half().float()
    expected = tiny.generate(PROMPTS, seed=5).tokens
    for model, words, folder in ((tmp_path / "one",) * 3, (of_model, of_words, tmp_path / "all")):
        tiny.model.save_pretrained(model)
        tiny.tokenizer.save_pretrained(words)
        JanusDoLa.check(folder, "cpu", prompts=PROMPTS)
        for dtype in ("float32", "float16"):  # packed on a CPU that can
            loaded = JanusDoLa.from_pretrained(folder, device="cpu", dtype=dtype)
            assert torch.equal(loaded.generate(PROMPTS, seed=5).tokens, expected)

    def command(*words):
        monkeypatch.setattr("sys.argv", ["janus-dola", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.run(cli.app)
        return stop.value.code or 0, " ".join(capsys.readouterr().err.split())

    given = "--model", folder, "--seed", 5
    again = "again", "generated_samples/0_a_red_circle_seed-5_model-all_p0.safetensors", "--model", folder
    for words in (("generate", PROMPTS[0], *given), ("batch", "--prompts", "prompts.txt", *given), again):
        status, said = command(*words)
        assert status == 0
        assert "draws codes, which another model paints: each image is a file .safetensors" in said
    files = sorted(tmp_path.glob("generated_samples/*")) + sorted(tmp_path.glob("out_dola/*.safetensors"))
    assert [file.stem for file in files] == [
        "0_a_red_circle_seed-5_model-all_p0", "0_a_red_circle_seed-5_model-all_p0_again",
        *(f"0_a_red_circle_p{k}" for k in range(4)),
    ]  # fmt: skip
    assert all(torch.equal(load_file(file)["tokens"], expected[0, 0]) for file in files[:3])
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()
    refusal = "must go with a model that paints its codes itself, got one of the family glm_image"
    for words in (("demo",), ("generate", "x", "--map"), ("batch", "--prompts", "prompts.txt", "--format", "png")):
        assert refusal in command(*words, "--model", folder, "--outdir", "other")[1]
    assert not list(tmp_path.glob("other/*.*ng"))
    assert command("profile", "--model", folder)[0] == 0
    quantized = JanusDoLa.from_pretrained(folder, device="cpu", quantize="int8")
    assert quantized.generate("x", seed=5).tokens.shape == expected[:1, :1].shape


# What the published repository holds beside the stage that draws codes and its processor.
OF_THE_PAINTER = (
    "README.md", "model_index.json", "processor/preprocessor_config.json", "scheduler/scheduler_config.json",
    "text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/added_tokens.json",
    "tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json", "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00003.safetensors", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)  # fmt: skip


def test_the_published_repository_is_loaded_by_its_name(tiny, tmp_path, monkeypatch):
    """Its files and names of tensors, as other projects' loaders name them; what is the painter's is not downloaded."""
    there, here = tmp_path / "hub", tmp_path / "cache"
    tiny.model.save_pretrained(there / "vision_language_encoder", max_shard_size="100KB")
    tiny.tokenizer.save_pretrained(there / "processor")
    for name in OF_THE_PAINTER:
        (there / name).parent.mkdir(exist_ok=True)
        (there / name).write_text("{}")
    names = json.loads((there / "vision_language_encoder" / "model.safetensors.index.json").read_text())["weight_map"]
    assert {".".join(name.split(".")[:2]) for name in names} == {
        "lm_head.weight", "model.language_model", "model.visual", "model.vqmodel",
    }  # fmt: skip
    assert len(set(names.values())) > 3
    block = "model.language_model.layers.0."
    assert {name.removeprefix(block) for name in names if name.startswith(block)} == {
        *(f"self_attn.{each}_proj.{kind}" for each in "qkv" for kind in ("weight", "bias")), "self_attn.o_proj.weight",
        "mlp.gate_up_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight", "post_self_attn_layernorm.weight",
        "post_attention_layernorm.weight", "post_mlp_layernorm.weight",
    }  # fmt: skip

    def download(repository, revision=None, allow_patterns=None, ignore_patterns=None):
        assert repository == "zai-org/GLM-Image"
        files = [str(file.relative_to(there)) for file in there.rglob("*") if file.is_file()]
        for name in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_bytes((there / name).read_bytes())
        return here

    monkeypatch.setattr("janus_dola.models.checkpoint.hub.snapshot_download", download)
    JanusDoLa.check("zai-org/GLM-Image", "cpu", prompts=PROMPTS)
    assert not list(here.rglob("*.safetensors"))
    loaded = JanusDoLa.from_pretrained("zai-org/GLM-Image", device="cpu")
    assert {file.name for file in here.iterdir()} == {"model_index.json", "processor", "vision_language_encoder"}
    assert torch.equal(loaded.generate(PROMPTS, seed=5).tokens, tiny.generate(PROMPTS, seed=5).tokens)
    assert loaded.encode(PROMPTS) == tiny.encode(PROMPTS)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"target_h": "large"}, "target_h must be an int in 32 .. 16384, got 'large'"),
        ({"target_w": 100}, "target_w must be a multiple of 32, got 100"),
        (
            {"target_h": 32, "target_w": 32 * 257},
            "target_h and target_w must differ by less than 256 times, got 1 x 257",
        ),
    ],
)
def test_sizes_that_cannot_be_drawn(pipe, edit, message):
    other = glm_image.model(pipe.tokenizer)
    for name, value in edit.items():
        setattr(other.config, name, value)
    with pytest.raises(ValueError, match=message):
        adapt(other)
