import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from janus_dola import DoLaConfig
from janus_dola.cli import app as cli
from janus_dola.images.recipe import read_recipe
from janus_dola.models.checkpoint.hub import resolve
from janus_dola.settings import DrawSettings


def test_generate_writes_images_that_carry_their_recipe(call, tmp_path):
    status, out, err = call(
        "generate", "a red circle", "a blue square", "--parallel-size", 2, "--outdir", tmp_path, "--seed", 5
    )
    assert status == 0
    prompts = ("0_a_red_circle", "1_a_blue_square")
    names = [f"{prompt}_seed-5_p{k}.png" for prompt in prompts for k in range(2)]
    assert out.split() == [str(tmp_path / name) for name in names]
    assert "coloured shapes only" in err
    recipe = read_recipe(tmp_path / names[3])
    assert (recipe.model, recipe.prompt, recipe.seed, recipe.settings) == ("mini", "a blue square", 8, DrawSettings())


@pytest.mark.parametrize(
    "settings",
    [
        ["--negative-prompt", "a small blue square on black"],
        ["--no-dola"],
        ["--alpha", "0.3", "--candidate-layers", "2,5", "--temperature", "0.8"],
    ],
)
def test_an_image_is_drawn_again_from_its_file(call, mini, tmp_path, settings, monkeypatch):
    drawn = []
    stream = mini.stream
    monkeypatch.setattr(
        type(mini), "stream", lambda self, *a, **k: (drawn.append(each) or each for each in stream(*a, **k))
    )
    _, out, _ = call(
        "generate", "a red circle", "--parallel-size", 2, "--outdir", tmp_path, "--format", "webp", *settings
    )
    second = Path(out.split()[1])
    status, out, _ = call("again", second, "--outdir", tmp_path)
    assert (status, out) == (0, f"{tmp_path / second.stem}_again.png\n")
    assert torch.equal(drawn[2].tokens, drawn[1].tokens)
    assert read_recipe(second) == read_recipe(Path(out.strip()))


def test_the_path_of_a_model_stays_out_of_images(call, tmp_path):
    folder = tmp_path / "secret" / "my-janus"
    shutil.copytree(resolve("mini"), folder)
    call("generate", "x", "--model", folder, "--outdir", tmp_path / "a")
    (tmp_path / "p.txt").write_text("x\n")
    call("batch", "--prompts", tmp_path / "p.txt", "--model", folder, "--outdir", tmp_path / "b", "--format", "png")
    for image in (tmp_path / "a" / "0_x_model-my-janus_p0.png", tmp_path / "b" / "0_x_p0.png"):
        assert read_recipe(image).model == "my-janus"
        assert b"secret" not in image.read_bytes()
    assert "secret" not in (tmp_path / "b" / "index_data.js").read_text()
    status, _, err = call("generate", "--from", image, "--outdir", tmp_path / "c")
    assert (status, "name its path by --model" in err) == (2, True)
    status, _, err = call("generate", "--from", image, "--outdir", tmp_path / "c", "--model", folder)
    assert (status, err) == (0, "")
    with pytest.warns(UserWarning, match="was drawn with model 'my-janus', and now with 'mini'"):
        call("generate", "--from", image, "--outdir", tmp_path / "d", "--model", "mini")


@pytest.mark.parametrize("option", ["--size", "--width", "--height"])
@pytest.mark.parametrize("command", [("generate", "x"), ("batch", "--prompts", "p.txt")])
def test_who_asks_for_a_size_is_told_that_the_model_fixes_it(call, command, option):
    status, _, err = call(*command, option, 512)
    assert (status, "resize the files instead" in err) == (2, True)


def test_a_batch_of_a_random_seed_goes_on_with_it(call, tmp_path):
    (tmp_path / "p.txt").write_text("x\n")
    seeds = []
    for folder, parallel in (("a", 1), ("b", 1), ("a", 1)):
        command = ["batch", "--prompts", tmp_path / "p.txt", "--seed", "random", "--parallel-size", parallel]
        status, out, _ = call(*command, "--outdir", tmp_path / folder)
        assert status == 0
        seeds.append(json.loads((tmp_path / folder / "run.json").read_text())["settings"]["seed"])
    assert "1 from earlier runs" in out
    assert seeds[0] == seeds[2] != seeds[1]
    assert json.loads((tmp_path / "b" / "manifest.jsonl").read_text())["seed"] == seeds[1]


def test_both_spellings_of_options(call, tmp_path):
    for spelling in ("--cfg_weight", "--cfg-weight"):
        status, *_ = call("generate", "x", spelling, 2.5, "--outdir", tmp_path / spelling)
        assert status == 0
        assert read_recipe(tmp_path / spelling / "0_x_cfg-weight-2.5_p0.png").settings.cfg_weight == 2.5


def test_images_without_metadata(call, tmp_path):
    for ending in ("png", "jpg", "webp"):
        status, *_ = call("generate", "x", "--no-metadata", "--format", ending, "--outdir", tmp_path / ending)
        assert status == 0
        content = (tmp_path / ending / f"0_x_p0.{ending}").read_bytes()
        assert b"mini" not in content
        assert b"janus" not in content
        with pytest.raises(ValueError, match="carries no recipe of janus-dola in its metadata"):
            read_recipe(tmp_path / ending / f"0_x_p0.{ending}")


def test_premature_layer_final_with_alpha_0_is_no_dola(call, tmp_path):
    command = ["generate", "a red circle", "--outdir", tmp_path]
    files = [call(*command, *more)[1].strip() for more in (["--premature-layer", "final", "--alpha", 0], ["--no-dola"])]
    assert [Path(file).name for file in files] == [
        "0_a_red_circle_alpha-0.0_premature-layer-final_p0.png",
        "0_a_red_circle_no-dola_p0.png",
    ]
    assert Image.open(files[0]).tobytes() == Image.open(files[1]).tobytes()


@pytest.mark.parametrize("app", ["batch", "run_batch_prompts"])
def test_batch_with_the_flags_of_the_original(call, tmp_path, app):
    prompts = tmp_path / "prompt.json"
    prompts.write_text(json.dumps({"prompts": ["a red circle", "../évil/😀", "never drawn"]}), encoding="utf-8")
    command = (["batch"], {}) if app == "batch" else ([], {"app": cli.batch_alone()})
    status, out, _ = call(
        *command[0], "--model", "mini", "--prompt_json", prompts, "--outdir", tmp_path / "out", "--parallel_size", 2,
        "--cfg_weight", 5, "--temperature", 1, "--alpha", 0.1, "--candidate_layers", "2,4", "--max_prompts", 2, **command[1],
    )  # fmt: skip
    assert status == 0
    assert "4 images of 2 prompts" in out
    names = sorted(path.name for path in (tmp_path / "out").glob("*.jpg"))
    assert names == ["0_a_red_circle_p0.jpg", "0_a_red_circle_p1.jpg", "1_évil_p0.jpg", "1_évil_p1.jpg"]
    assert [read_recipe(tmp_path / "out" / name).seed for name in names] == [0, 1, 2, 3]
    assert read_recipe(tmp_path / "out" / names[0]).settings.contrast == DoLaConfig([2, 4])


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "[[]]", '{"prompts": "a"}', '{"prompts": []}', '{"prompts": ["a", 3]}', '{"prompt": ["a"]}'],
)
def test_prompt_files_that_are_not(call, tmp_path, content):
    prompts = tmp_path / "prompt.json"
    prompts.write_text(content)
    status, _, err = call("batch", "--prompt_json", prompts, "--outdir", tmp_path / "out")
    assert status == 2
    assert f"prompt file {prompts} " in err
    assert " must be a " in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--alpha", "2"], "alpha must lie in [0, 1], got 2.0"),
        (["generate", "x", "--temperature", "-1"], "temperature must be a finite number >= 0"),
        (["generate", "x", "--candidate-layers", "a,b"], "must be \"auto\" or integers separated by commas, got 'a,b'"),
        (["generate", "x", "--candidate-layers", "8,9"], "candidate_layers must name a layer in 1 .. 7"),
        (["generate", "x", "--premature-layer", "last"], "premature_layer must be an integer or \"final\", got 'last'"),
        (["generate", "x", "--backend", "gpu"], "is not one of 'auto', 'reference', 'torch', 'triton'"),
        (["again", "no-such-file.png"], "No such file"),
        (["again"], "Missing argument 'FILE'"),
        (["generate", "--from", "no-such-file.png"], "No such file"),
        (["again", "."], ". carries no recipe of janus-dola: it is no file of at most"),
        (["generate"], "give a prompt; `janus-dola again FILE` draws an image again"),
        (["generate", "x", "--from", "a.png"], "leave out: prompts"),
        (["generate", "--seed", "3", "--from", "a.png"], "leave out: seed"),
        (["batch", "--prompt-json", "no-such-file.json"], "No such file"),
        (["batch", "--prompts", "no-such-file.txt"], "No such file"),
        (["batch", "--prompts", "a", "--workers", "0"], "workers must be an int in 1 .. 65536, got 0"),
        (["batch", "--prompts", "a", "--batch-size", "0"], "batch_size must be an int in 1 .. 65536, got 0"),
        (["batch", "--prompts", "a", "--workers", "1", "--device", "cuda:1"], 'device must be "cpu" or "cuda" with workers'),
        (["batch", "--prompts", "a", "--parallel-size", "0"], "parallel_size must be an int in 1 .. 65536, got 0"),
        (["batch", "--prompts", "a", "--alpha", "2"], "alpha must lie in [0, 1], got 2.0"),
        (["batch", "--prompts", "a", "--dtype", "int8"], "is not one of 'float32'"),
    ],
)  # fmt: skip
def test_wrong_input_ends_in_a_message_and_status_2(call, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(*arguments)
    assert status == 2
    assert out == ""
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


def test_a_batch_with_failures_ends_with_status_1_and_with_other_settings_with_2(call, tmp_path):
    prompts, outdir = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text('{"prompt": "a red circle"}\n{"prompt": 7}\n')
    command = ["batch", "--prompts", prompts, "--outdir", outdir, "--parallel-size", 1]
    status, _, err = call(*command)
    assert status == 2
    assert err == (
        f"janus-dola: error: prompt file {prompts} line 2: prompt must be a string, got 7. --skip-bad draws the others\n"
    )
    assert not outdir.exists()
    status, out, err = call(*command, "--skip-bad")
    assert status == 1
    assert out == f"1 images of 2 prompts in {outdir}; see {outdir / 'index.html'}\n"
    assert err.endswith(f"janus-dola: 1 failed: see the lines with an error in {outdir / 'manifest.jsonl'}\n")
    status, _, err = call(*command, "--skip-bad", "--seed", 3)
    assert status == 2
    assert err == (
        f"janus-dola: error: outdir {outdir} was made with other settings: seed 0, now 3. "
        "Take another --outdir, or --overwrite what is there\n"
    )
    status, out, _ = call(*command, "--skip-bad", "--seed", 3, "--overwrite")
    assert status == 1
    assert read_recipe(outdir / "0_a_red_circle_p0.jpg").seed == 3


def test_the_column_of_the_prompt_can_be_named(call, tmp_path):
    table = tmp_path / "captions.csv"
    table.write_text('image_id,caption\n5,"a red circle, small"\n')
    command = ["batch", "--prompts", table, "--outdir", tmp_path / "out", "--parallel-size", 1]
    status, _, err = call(*command)
    assert status == 2
    assert err == (
        f"janus-dola: error: prompt file {table} header must have the key 'prompt', got 'image_id', 'caption'; "
        "--prompt-key names another\n"
    )
    with pytest.warns(UserWarning, match="keys that set nothing are kept in the manifest: 'image_id'"):
        status, *_ = call(*command, "--prompt-key", "caption")
    assert status == 0
    assert read_recipe(tmp_path / "out" / "0_a_red_circle_small_p0.jpg").prompt == "a red circle, small"


def test_info(call):
    status, out, _ = call("info", "mini")
    assert status == 0
    lines = {line[:26].strip(): line[26:] for line in out.splitlines()}
    assert lines["blocks (N)"] == "8"
    assert lines["image codes (V)"] == "512"
    assert lines["default candidate layers"] == "2, 4, 6"
    assert lines["image size"] == "64 x 64 pixels"
    assert f"torch {torch.__version__}, transformers {transformers.__version__}" in lines["software"]


def test_demo(call, tmp_path):
    status, out, _ = call("demo", "--outdir", tmp_path)
    assert status == 0
    assert str(tmp_path / "contact_sheet.png") in out
    assert Image.open(tmp_path / "contact_sheet.png").size[0] > 900
    maps = sorted(tmp_path.glob("map_*.png"))
    assert len(maps) == 18
    assert Image.open(maps[0]).size == (832, 376)


def test_a_warning_in_a_real_shell_is_one_line_and_libraries_say_nothing(tmp_path):
    command = [sys.executable, "-m", "janus_dola", "generate", "x", "--candidate_layers", "2,99"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert ended.stdout == "generated_samples/0_x_candidate-layers-2_99_p0.png\n"
    hint, warning = ended.stderr.splitlines()
    assert hint.startswith('Drawing with "mini"')
    assert warning == "janus-dola: warning: candidate_layers outside 1 .. 7 dropped: [99]; [2] remain"


def test_an_error_is_one_line(call):
    status, out, err = call("--prompt_json", "missing.json", app=cli.batch_alone())
    assert (status, out) == (2, "")
    assert err == "janus-dola: error: [Errno 2] No such file or directory: 'missing.json'\n"


@pytest.mark.parametrize("word", ["random", "-1"])
def test_a_random_seed_is_another_each_time_and_recorded(call, tmp_path, word):
    seeds = []
    for run in range(2):
        status, out, _ = call("generate", "a red circle", "--seed", word, "--outdir", tmp_path / str(run))
        assert status == 0
        seeds.append(read_recipe(Path(out.strip())).seed)
    assert seeds[0] != seeds[1]
    assert all(0 <= seed < 2**48 for seed in seeds)


def test_a_seed_that_is_none_is_refused(call):
    status, out, err = call("generate", "a red circle", "--seed", "soon")
    assert (status, out) == (2, "")
    assert "seed must be an integer, \"random\" or -1, got 'soon'" in err


def test_out_of_memory_is_one_line(call, mini, monkeypatch, tmp_path):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n20 GiB")

    monkeypatch.setattr(mini, "stream", full)
    status, out, err = call("generate", "a red circle", "--outdir", tmp_path)
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("janus-dola: error: out of memory: draw fewer images at once")
    assert "Tried to allocate" not in err
