import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from janus_dola import DoLaConfig, NonFiniteError
from janus_dola.batch import Compute, RunSettings, batch_run, run_batch
from janus_dola.batch.folder import LOCK, WORK
from janus_dola.batch.manifest import names_of
from janus_dola.batch.prompts import ImageTask
from janus_dola.engine.decoder import Decoder
from janus_dola.engine.engine import Engine
from janus_dola.images.recipe import read_recipe
from janus_dola.settings import DrawSettings
from tests.janus_dola.batch_helpers import (
    SHAPES,
    FastPipe,
    assert_equal_but_for_rounding,
    lines,
    pictures,
    without_seconds,
)

TWO = RunSettings(parallel_size=2)
FOUR_AT_ONCE = Compute(batch_size=4)


def test_a_run_writes_what_stream_draws_and_says_how(mini, tmp_path):
    summary = run_batch(SHAPES[:3], tmp_path, TWO, FOUR_AT_ONCE, pipe=mini)
    assert (summary.prompts, summary.images, summary.drawn, summary.kept, summary.failed) == (3, 6, 6, 0, 0)
    actual = lines(tmp_path)
    prompts = [prompt for prompt in SHAPES[:3] for _ in range(2)]
    together = [mini.generate(prompts[:4], seed=range(4)), mini.generate(prompts[4:], seed=range(4, 6))]  # two batches
    images = [image for batch in together for (image,) in batch.drawn]
    for i, (drawn, line) in enumerate(zip(images, actual, strict=True)):
        assert line["prompt"] == prompts[i]
        assert (line["index"], line["k"], line["seed"]) == (i // 2, i % 2, drawn.seed)
        assert line["mean_jsd"] == pytest.approx(drawn.jsd.mean().item(), abs=1e-4)
        assert line["log_prob"] == pytest.approx(drawn.log_probs.sum().item(), abs=1e-4)
        layers = {int(layer): count for layer, count in line["layers"].items()}
        assert layers == {layer: int((drawn.premature_layers == layer).sum()) for layer in layers}
        assert sum(layers.values()) == 64
        assert line["seconds"] > 0
        recipe = read_recipe(tmp_path / line["file"])
        assert (recipe.prompt, recipe.seed, recipe.dtype) == (line["prompt"], line["seed"], "float32")
        layer_map = Image.open(tmp_path / line["map"])
        assert layer_map.size == (16, 8)
        assert np.asarray(layer_map)[:, :8].ravel().tolist() == drawn.premature_layers.tolist()


def test_the_same_command_again_draws_nothing(fast, tmp_path, drawn_prompts):
    run_batch(SHAPES, tmp_path, TWO, FOUR_AT_ONCE, pipe=fast)
    before, manifest = pictures(tmp_path), lines(tmp_path)
    drawn_prompts.clear()
    summary = run_batch(SHAPES, tmp_path, TWO, FOUR_AT_ONCE, pipe=fast)
    assert (summary.drawn, summary.kept) == (0, 36)
    assert drawn_prompts == []
    assert (pictures(tmp_path), lines(tmp_path)) == (before, manifest)


def test_prompts_may_be_added(fast, tmp_path):
    run_batch(SHAPES[:3], tmp_path, TWO, pipe=fast)
    summary = run_batch(SHAPES[:5], tmp_path, TWO, pipe=fast)
    assert (summary.drawn, summary.kept) == (4, 6)
    assert run_batch(SHAPES, tmp_path, TWO, max_prompts=2, pipe=fast).kept == 4
    assert len(lines(tmp_path)) == 10  # those of the five are still there


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RunSettings(parallel_size=3), "parallel_size 2, now 3"),
        (RunSettings(parallel_size=2, seed=4), "seed 0, now 4"),
        (RunSettings("other", parallel_size=2), "model mini, now other"),
        (RunSettings(parallel_size=2, image_format="png"), "format jpg, now png"),
        (RunSettings(parallel_size=2, dtype="bf16"), "dtype float32, now bfloat16"),
        (RunSettings(parallel_size=2, drawing=DrawSettings(contrast=DoLaConfig(alpha=0.3))), "alpha 0.1, now 0.3"),
        (
            RunSettings(parallel_size=2, drawing=DrawSettings(2.0, 0.5)),
            "cfg_weight 5.0, now 2.0; temperature 1.0, now 0.5",
        ),
        (RunSettings(parallel_size=2, drawing=DrawSettings(contrast=None)), "contrast dola, now None"),
    ],
)
def test_a_folder_of_other_settings_is_refused(fast, tmp_path, settings, message):
    run_batch(SHAPES[:2], tmp_path, TWO, pipe=fast)
    before = pictures(tmp_path)
    with pytest.raises(ValueError, match="was made with other settings: " + message):
        run_batch(SHAPES[:2], tmp_path, settings, pipe=fast)
    assert pictures(tmp_path) == before


def test_a_folder_of_other_prompts_is_refused(fast, tmp_path):
    run_batch(SHAPES[:3], tmp_path, TWO, pipe=fast)
    before = pictures(tmp_path)
    with pytest.raises(ValueError, match=r"image 2 there was drawn from 'a large red square' with seed 2"):
        run_batch([SHAPES[0], "something else"], tmp_path, TWO, pipe=fast)
    assert pictures(tmp_path) == before


def test_overwrite_leaves_what_a_fresh_run_gives(fast, tmp_path):
    for name, prompts, settings in [
        ("settings", SHAPES[:2], RunSettings(parallel_size=3, image_format="png")),
        ("prompts", ["something else", SHAPES[1]], TWO),
    ]:
        old, fresh = tmp_path / name, tmp_path / f"fresh_{name}"
        run_batch(SHAPES[:3], old, TWO, pipe=fast)
        (old / "mine.jpg").write_bytes(b"not of the run")
        run_batch(prompts, old, settings, overwrite=True, pipe=fast)
        run_batch(prompts, fresh, settings, pipe=fast)
        assert (old / "mine.jpg").exists()
        (old / "mine.jpg").unlink()
        assert pictures(old) == pictures(fresh)
        assert without_seconds(old) == without_seconds(fresh)


def test_overwrite_deletes_nothing_when_the_model_is_not_there(fast, tmp_path):
    run_batch(SHAPES[:3], tmp_path, TWO, pipe=fast)
    before = pictures(tmp_path)
    with pytest.raises(FileNotFoundError, match="no/such/model"):
        run_batch(SHAPES[:3], tmp_path, RunSettings("no/such/model"), overwrite=True)
    assert pictures(tmp_path) == before


def test_a_folder_another_run_writes_to_is_refused(fast, tmp_path):
    (tmp_path / WORK).mkdir()
    with FileLock(tmp_path / LOCK), pytest.raises(ValueError, match="another run is writing to it"):
        run_batch(SHAPES[:1], tmp_path, TWO, pipe=fast)


def test_one_bad_prompt_does_not_stop_the_others(mini, tmp_path):
    prompts = [
        SHAPES[0],
        {"prompt": "far too long " * 400},
        {"prompt": SHAPES[1], "candidate_layers": [99]},
        {"prompt": SHAPES[2], "dtype": "float32"},
        SHAPES[3],
    ]
    with pytest.raises(
        ValueError, match=r"prompt 3: dtype must be the same .* got .float32.\. --skip-bad draws the others"
    ):
        run_batch(prompts, tmp_path, TWO, pipe=mini)
    assert not list(tmp_path.iterdir())
    summary = run_batch(prompts, tmp_path, TWO, FOUR_AT_ONCE, skip_bad=True, pipe=mini)
    assert (summary.images, summary.drawn, summary.failed) == (8, 4, 5)
    errors = {line["index"]: line["error"] for line in lines(tmp_path) if line["file"] is None}
    assert "prompts must leave room for 64 image tokens" in errors[1]
    assert "candidate_layers must name a layer in 1 .. 7" in errors[2]
    assert "prompt 3: dtype must be" in errors[3]
    assert [(line["index"], line["k"]) for line in lines(tmp_path)] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, None), (4, 0), (4, 1),
    ]  # fmt: skip
    again = run_batch(prompts, tmp_path, TWO, FOUR_AT_ONCE, skip_bad=True, pipe=mini)
    assert (again.drawn, again.kept, again.failed) == (0, 4, 5)
    assert len(lines(tmp_path)) == 9


def test_the_others_of_a_batch_with_a_non_finite_image_come_out(mini, tmp_path, monkeypatch):
    generate = type(mini).generate

    def overflows(self, prompts, *rest, seed, **settings):
        output = generate(self, prompts, *rest, seed=seed, **settings)
        bad = [i for i, each in enumerate(seed) if each in (1, 6)]
        if bad:
            raise NonFiniteError(bad, [image for i, (image,) in enumerate(output.drawn) if i not in bad])
        return output

    run_batch(SHAPES[:4], tmp_path / "whole", TWO, FOUR_AT_ONCE, pipe=mini)
    monkeypatch.setattr(type(mini), "generate", overflows)
    summary = run_batch(SHAPES[:4], tmp_path / "faulty", TWO, FOUR_AT_ONCE, pipe=mini)
    assert (summary.drawn, summary.failed) == (6, 2)
    errors = {line["image"]: line["error"] for line in lines(tmp_path / "faulty") if line["file"] is None}
    assert list(errors) == [1, 6]
    assert "became NaN or infinite for image(s) [6]" in errors[6]
    whole, faulty = pictures(tmp_path / "whole"), pictures(tmp_path / "faulty")
    assert len(faulty) == 12
    assert faulty.items() < whole.items()
    monkeypatch.setattr(type(mini), "generate", generate)
    assert run_batch(SHAPES[:4], tmp_path / "faulty", TWO, FOUR_AT_ONCE, pipe=mini).failed == 0
    # The two that had failed were drawn without their neighbours, in other shapes.
    assert_equal_but_for_rounding(pictures(tmp_path / "faulty"), whole)


def test_out_of_gpu_memory_halves_the_batch_for_good(mini, tmp_path, monkeypatch):
    make, sizes = Decoder.__init__, []

    def small_gpu(self, image_model, weights, key, *rest):
        sizes.append(key.slots)
        if key.slots > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        make(self, image_model, weights, key, *rest)

    run_batch(SHAPES[:6], tmp_path / "large", TWO, Compute(batch_size=8), pipe=mini)
    monkeypatch.setattr(Decoder, "__init__", small_gpu)
    monkeypatch.setattr(mini, "engine", Engine(mini.image_model))
    assert run_batch(SHAPES[:6], tmp_path / "small", TWO, Compute(batch_size=8), pipe=mini).failed == 0
    assert sizes == [8, 4, 2, 2]  # two batches
    assert_equal_but_for_rounding(pictures(tmp_path / "small"), pictures(tmp_path / "large"))


def test_an_image_too_large_for_the_gpu_fails_alone(fast, tmp_path, monkeypatch):
    def huge(self, prompts, *rest, **settings):
        if "huge" in prompts:
            raise torch.cuda.OutOfMemoryError("out of memory with 1 image(s) at once")
        return generate(self, prompts, *rest, **settings)

    generate = FastPipe.generate
    monkeypatch.setattr(FastPipe, "generate", huge)
    summary = run_batch(["a", "huge", "b"], tmp_path, RunSettings(parallel_size=1), pipe=fast)
    assert (summary.drawn, summary.failed) == (2, 1)
    assert lines(tmp_path)[1]["error"] == "out of memory with 1 image(s) at once"


@pytest.mark.parametrize("where", ["image", "manifest"])
def test_a_full_disk_stops_with_one_line_and_the_next_run_goes_on(fast, tmp_path, monkeypatch, where):
    outdir = tmp_path / "out"
    undisturbed = run_batch(SHAPES, tmp_path / "whole", TWO, FOUR_AT_ONCE, pipe=fast)
    calls = []

    def full(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 9:
            raise OSError(errno.ENOSPC, "No space left on device", str(outdir / "x.jpg"))
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        if where == "image":
            whole = batch_run.write_whole
            patch.setattr(batch_run, "write_whole", full)
        else:
            whole = batch_run.Manifest.append
            patch.setattr(batch_run.Manifest, "append", full)
        with pytest.raises(
            OSError, match=r"cannot write to .*: No space left on device\. What is there is whole; the same"
        ):
            run_batch(SHAPES, outdir, TWO, FOUR_AT_ONCE, pipe=fast)
    summary = run_batch(SHAPES, outdir, TWO, FOUR_AT_ONCE, pipe=fast)
    assert summary.drawn + summary.kept == undisturbed.images
    assert summary.kept > 0
    assert pictures(outdir) == pictures(tmp_path / "whole")


def test_a_folder_that_cannot_be_made_stops_with_one_line(fast, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to .*file/out: Not a directory"):
        run_batch(SHAPES, tmp_path / "file" / "out", TWO, pipe=fast)


def test_ctrl_c_finishes_the_batch_in_hand(fast, tmp_path, monkeypatch, capsys):
    generate, calls = FastPipe.generate, []

    def interrupted(self, *arguments, **settings):
        calls.append(arguments)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return generate(self, *arguments, **settings)

    monkeypatch.setattr(FastPipe, "generate", interrupted)
    before = signal.getsignal(signal.SIGINT)
    summary = run_batch(SHAPES, tmp_path, TWO, FOUR_AT_ONCE, pipe=fast)
    assert signal.getsignal(signal.SIGINT) is before
    assert (summary.drawn, summary.left, summary.interrupted) == (12, 24, True)
    assert "finishing the batch in hand; Ctrl-C again stops at once" in capsys.readouterr().err
    assert len(lines(tmp_path)) == 12
    assert (tmp_path / "index.html").exists()
    assert run_batch(SHAPES, tmp_path, TWO, FOUR_AT_ONCE, pipe=fast).kept == 12


def test_the_second_ctrl_c_stops_at_once(fast, tmp_path, monkeypatch):
    def interrupted(self, *arguments, **settings):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")

    monkeypatch.setattr(FastPipe, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_batch(SHAPES, tmp_path, TWO, FOUR_AT_ONCE, pipe=fast)
    monkeypatch.undo()
    assert run_batch(SHAPES, tmp_path, TWO, FOUR_AT_ONCE, pipe=fast).drawn == 36


def test_looks_that_alternate_are_drawn_in_full_batches(fast, tmp_path, drawn_prompts):
    prompts = [{"prompt": str(i), "alpha": 0.1 * (i % 3)} for i in range(24)]
    run_batch(prompts, tmp_path, RunSettings(parallel_size=1), FOUR_AT_ONCE, pipe=fast)
    assert [len(batch) for batch in drawn_prompts] == [4] * 6
    assert drawn_prompts[0] == ["0", "3", "6", "9"]
    assert [line["index"] for line in lines(tmp_path)] == list(range(24))


def test_images_without_metadata_are_resumed_too(mini, tmp_path):
    bare = RunSettings(parallel_size=1, image_format="png", metadata=False)
    run_batch(SHAPES[:2], tmp_path, bare, pipe=mini)
    assert [dict(Image.open(path).getexif()) for path in sorted(tmp_path.glob("*.png"))] == [{}, {}]
    assert run_batch(SHAPES[:2], tmp_path, bare, pipe=mini).kept == 2
    with pytest.raises(ValueError, match="metadata False, now True"):
        run_batch(SHAPES[:2], tmp_path, RunSettings(parallel_size=1, image_format="png"), pipe=mini)


def test_a_negative_prompt_of_the_run_and_one_of_a_line(mini, tmp_path):
    of_run, negative = (
        RunSettings(drawing=DrawSettings(negative_prompt="blue"), parallel_size=1, image_format="png"),
        "a red circle",
    )
    prompts = [SHAPES[0], {"prompt": SHAPES[0], "negative_prompt": negative, "seed": 0}]
    run_batch(prompts, tmp_path, of_run, pipe=mini)
    assert [line["settings"]["negative_prompt"] for line in lines(tmp_path)] == ["blue", negative]
    for line in lines(tmp_path):
        recipe = read_recipe(tmp_path / line["file"])
        (drawn,) = mini.stream(recipe.prompt, 1, recipe.settings)
        assert drawn.image.tobytes() == Image.open(tmp_path / line["file"]).tobytes()
    assert run_batch(prompts, tmp_path, of_run, pipe=mini).kept == 2
    with pytest.raises(ValueError, match="negative_prompt blue, now None"):
        run_batch(prompts, tmp_path, RunSettings(parallel_size=1, image_format="png"), pipe=mini)


def test_files_are_named_by_a_template(fast, tmp_path):
    named = RunSettings(parallel_size=2, name_template="{id}-{k}")
    prompts = [{"prompt": "a", "id": "cat/../7"}, {"prompt": "b"}]
    run_batch(prompts, tmp_path, named, pipe=fast)
    assert [line["file"] for line in lines(tmp_path)] == ["cat_7-0.jpg", "cat_7-1.jpg", "1-0.jpg", "1-1.jpg"]
    assert pictures(tmp_path).keys() == {line[kind] for line in lines(tmp_path) for kind in ("file", "map")}
    assert run_batch(prompts, tmp_path, named, pipe=fast).kept == 4
    prompts[0]["id"] = "dog"
    with pytest.raises(ValueError, match="must hold images of the same prompts"):
        run_batch(prompts, tmp_path, named, pipe=fast)
    with pytest.raises(ValueError, match="name_template {id}-{k}, now None"):
        run_batch(prompts, tmp_path, TWO, pipe=fast)
    run_batch(prompts, tmp_path, named, overwrite=True, pipe=fast)
    assert sorted(path.name for path in tmp_path.glob("*.jpg")) == ["1-0.jpg", "1-1.jpg", "dog-0.jpg", "dog-1.jpg"]


@pytest.mark.parametrize("template", ["{words}", "{id}{k}", "{index}{k}"])
def test_names_that_two_images_would_share_are_refused(fast, tmp_path, template):
    prompts = [{"prompt": f"A {i}", "id": "x"} for i in range(12)] + ["a 1"]
    with pytest.raises(ValueError, match="name_template must tell all images apart, but two are"):
        run_batch(prompts, tmp_path / "out", RunSettings(parallel_size=12, name_template=template), pipe=fast)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "template", ["", "x", "{name}", "{k}{k}", "../{k}", "{k}/a", ".{k}", "{k}\n", "{k!r}", "{k", 7, "a" * 17 + "{k}"]
)
def test_templates_that_are_none(template):
    with pytest.raises(ValueError, match="name_template must"):
        RunSettings(name_template=template)


def test_names_are_never_too_long():
    settings = RunSettings(name_template="0123456789abcde_{words}{id}{index}{k}{number}{seed}")
    task = ImageTask(10**8, 10**7, 65535, "\U0001d552" * 99, 2**63 - 1, DrawSettings(), "\U0001d552" * 99)
    assert max(len(os.fsencode(name.removeprefix("maps/"))) for name in names_of(task, settings)) <= 255


def test_the_shell_says_what_happened(tmp_path):
    """The command in a process of its own: files from stdin, failures, Ctrl-C between two batches, the next run."""
    command = [
        sys.executable, "-m", "janus_dola.cli.app", "batch", "--prompts", "-", "--outdir", "out", "--batch-size", "2",
        "--parallel-size", "2", "--skip-bad",
    ]  # fmt: skip
    prompts = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in SHAPES[:6]) + "{\n"
    first = subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first.stdin.write(prompts)
    first.stdin.close()
    while first.poll() is None and not list(tmp_path.glob("out/*.jpg")):
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    out, err = first.stdout.read(), first.stderr.read()
    assert first.wait() == 130, err
    drawn = len(list(tmp_path.glob("out/*.jpg")))
    assert 2 <= drawn < 12
    assert f"{drawn} images of 7 prompts in out; see out/index.html" in out
    assert f"interrupted with {12 - drawn} images to go; the same command goes on" in err
    second = subprocess.run(command, cwd=tmp_path, input=prompts, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert f"12 images of 7 prompts in out ({drawn} from earlier runs)" in second.stdout
    assert second.stderr.endswith("janus-dola: 1 failed: see the lines with an error in out/manifest.jsonl\n")
    assert "failed=1" in second.stderr
