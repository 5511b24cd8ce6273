"""The largest seed and the largest numbers, through every front: they draw, or one line says what is allowed."""

import json
import math

import pytest
import torch

from janus_dola import DoLaConfig, SLEDConfig
from janus_dola.arguments import MAX_SEED
from janus_dola.batch import RunSettings, run_batch
from janus_dola.batch.prompts import PromptSource
from janus_dola.images.recipe import read_recipe
from janus_dola.kernels.types import SamplingTensors
from janus_dola.serve.requests import ImagesRequest, InvalidError, Reader
from janus_dola.settings import SETTINGS, DrawSettings
from tests.janus_dola.batch_helpers import lines

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def last(mini):
    """The image of the largest seed; nobody checks a list of seeds against the number of images."""
    return mini.generate(PROMPT, 2, seed=[MAX_SEED - 1, MAX_SEED]).drawn[0][1]


def by_call(mini, seed, images):
    return [each.seed for each in mini.generate(PROMPT, images, seed=seed).drawn[0]]


def by_stream(mini, seed, images):
    return [each.seed for each in mini.stream([PROMPT] * images, seed=seed)]


def by_run(mini, seed, images):
    records = list(PromptSource([PROMPT]).read(RunSettings(seed=seed, parallel_size=images)))
    return [task.seed for task in records[0].tasks]


def by_line(mini, seed, images):
    line = {"prompt": PROMPT, "seed": seed, "parallel_size": images}
    (record,) = PromptSource([line]).read(RunSettings(parallel_size=1))
    if record.fault:
        raise ValueError(record.fault.removeprefix("prompt 0: "))
    return [task.seed for task in record.tasks]


def by_server(mini, seed, images):
    return [
        recipe.seed
        for recipe in Reader(mini, "mini").read(ImagesRequest(prompt=PROMPT, seed=seed, n=images), print).recipes
    ]


@pytest.mark.parametrize("front", [by_call, by_stream, by_run, by_line, by_server])
def test_seeds_count_up_to_the_last_and_not_beyond(mini, front):
    assert front(mini, MAX_SEED, 1) == [MAX_SEED]
    assert front(mini, MAX_SEED - 1, 2) == [MAX_SEED - 1, MAX_SEED]
    with pytest.raises((ValueError, InvalidError), match="^seed must .*, got 9223372036854775807$"):
        front(mini, MAX_SEED, 2)


def test_the_largest_seed_on_the_command_line(call, last, tmp_path):
    status, out, _ = call("generate", PROMPT, "--seed", MAX_SEED, "--outdir", tmp_path)
    assert status == 0
    file = tmp_path / out.strip().rpartition("/")[2]
    assert read_recipe(file).seed == MAX_SEED
    assert file.read_bytes() == last.save(tmp_path / "own.png").read_bytes()
    status, out, _ = call("generate", "--from", file, "--outdir", tmp_path)
    assert status == 0
    assert (tmp_path / out.strip().rpartition("/")[2]).read_bytes() == file.read_bytes()
    for command in (("generate", PROMPT), ("answer", file, "what?")):
        status, _, err = call(*command, "--seed", MAX_SEED + 1)
        assert (status, err.count("\n")) == (2, 1)
        assert "seed must be an int in 0 .. 9223372036854775807, got 9223372036854775808" in err


EXTREMES = [
    math.inf, -math.inf, math.nan, 1e300, -1e300, 1e39, -1e39, 1e11, 1e10, -1e10, 1e-46, 5e-324, -0.0, 0, -1, 2**31,
    2**63, -(2**63), 10**400, True, False, "", "1e39", [], [2**64], [2, 10**30], [math.nan], {}, 1.5,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:candidate_layers outside")
def test_no_number_in_a_line_stops_the_other_lines(fast, tmp_path):
    """Whatever a setting's value is: the kernels take it as a tensor, or the line is bad and says which setting is."""
    names = [name for name in SETTINGS if name not in ("contrast", "dola", "negative_prompt")]
    bad = [
        {"prompt": PROMPT, "contrast": (SETTINGS[name].methods or ("dola",))[0], name: value}
        for name in names
        for value in EXTREMES
    ]
    rows = [PROMPT, *bad, PROMPT]
    summary = run_batch(rows, tmp_path, RunSettings(parallel_size=1), skip_bad=True, pipe=fast)
    entries = lines(tmp_path)
    assert (summary.prompts, len(entries)) == (len(rows), len(rows))
    assert entries[0]["file"]
    assert entries[-1]["file"]
    drawn = 0
    for row, entry in zip(rows[1:-1], entries[1:-1], strict=True):
        (name,) = row.keys() - {"prompt", "contrast"}
        if entry["file"] is None:
            assert f"{name} must " in entry["error"], row
            assert entry["error"].isprintable()
            continue
        drawn += 1
        settings = DrawSettings().changed({key: row[key] for key in ("contrast", name)})
        tensors = SamplingTensors.repeat(settings.sampling_params(settings.layers_to_read(8)), 1, torch.zeros(1)).flat()
        assert all(each.isfinite().all() for key, each in tensors.items() if key != "log_alpha"), row
    assert drawn >= 3 * len(names) / 2
    json.dumps(entries, allow_nan=False)


@pytest.mark.parametrize(
    "contrast", [DoLaConfig(alpha=5e-324), SLEDConfig(evolution_rate=1e10, evolution_scale=2**31 - 1)]
)
@pytest.mark.parametrize(("cfg_weight", "temperature"), [(1e10, 1e-6), (-1e10, 1e10)])
def test_the_largest_numbers_that_are_allowed_draw(mini, contrast, cfg_weight, temperature):
    settings = DrawSettings(cfg_weight, temperature, contrast, top_k=2**31 - 1, top_p=0.5)
    out = mini.generate(PROMPT, 1, settings, seed=3)
    log_probs = mini.log_probs(PROMPT, out.tokens, settings)
    assert log_probs.isfinite().all()
    assert out.tokens.unique().numel() > 1
