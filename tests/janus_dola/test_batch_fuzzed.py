"""Thousands of prompts of any kind: none stops the run, none writes outside its folder, each is accounted for."""

import json
import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from janus_dola.batch import RunSettings, run_batch
from janus_dola.images.recipe import read_recipe
from tests.janus_dola.batch_helpers import FastPipe, lines

NASTY = [
    "", " ", ".", "..", "../../etc/passwd", "/absolute", "C:\\con", "con", "NUL.jpg", "a/b\\c", "-rf", "~", "%2e%2e%2f",
    "\x00", "\n", "\r\n", "\x1b[31m", "\u202egpj", "\u2028", "\ufeff", "😀" * 60, "é" * 300, "e\u0301", "a" * 10_000,
    "</script>", '"', "'", "`${x}`", "_p0.jpg", ".partial", "manifest.jsonl", "index.html", "{", "\ud800", "ﬁ", "İ", "汉字",
]  # fmt: skip
TEXTS = (
    st.sampled_from(NASTY) | st.text(max_size=60) | st.text(st.characters(), max_size=12).map(lambda text: f"../{text}")
)
NUMBERS = st.integers() | st.floats() | st.integers(-2, 2**64)
VALUES = st.none() | st.booleans() | NUMBERS | TEXTS | st.lists(st.integers(-1, 9), max_size=4)
FIELDS = {
    "prompt": TEXTS,
    "id": TEXTS | st.integers(),
    "seed": st.integers(0, 2**63),
    "parallel_size": st.integers(0, 3),
    "cfg_weight": st.floats(-10, 10),
    "alpha": st.floats(0, 1),
    "candidate_layers": st.just("auto") | st.lists(st.integers(0, 9), max_size=4),
}
GOOD = st.fixed_dictionaries(
    {"prompt": FIELDS["prompt"]}, optional={key: FIELDS[key] for key in FIELDS if key != "prompt"}
)
ODD = st.dictionaries(st.sampled_from([*FIELDS, "prompts", "Seed"]), VALUES, max_size=4) | VALUES
# Parallel sizes that are legal and huge would only take long.
RECORDS = (GOOD | GOOD | GOOD | ODD).filter(
    lambda each: not isinstance(each, dict) or not isinstance(size := each.get("parallel_size"), int) or size <= 3
)
RAW = st.one_of(*[RECORDS.map(lambda each: json.dumps(each).encode())] * 4, st.binary(max_size=30)).map(
    lambda line: line.replace(b"\n", b"").replace(b"\r", b"")
)
COUNT = int(os.environ.get("RECORDS", "2500"))  # 10,000 take half a minute


@pytest.fixture(scope="module")
def fuzzed():
    """Lines, each of them not blank."""
    results = []

    @settings(max_examples=COUNT // 20, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(some=st.lists(RAW.filter(bytes.strip), min_size=20, max_size=20))
    def collect(some):
        results.extend(some)

    collect()
    assert len(results) >= COUNT
    return results


def tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.filterwarnings("ignore:candidate_layers outside")
def test_fuzzed_records(fuzzed, mini, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # safety against a loss of power is not the matter here
    outdir, prompts = tmp_path / "deep" / "er" / "out", tmp_path / "prompts.jsonl"
    prompts.write_bytes(b"\n".join(fuzzed))
    pipe = FastPipe(mini.model, mini.tokenizer)
    before = tree(tmp_path)
    summary = run_batch(prompts, outdir, RunSettings(parallel_size=1, seed=5), skip_bad=True, pipe=pipe)
    assert summary.prompts == len(fuzzed)
    assert summary.drawn > 0.2 * COUNT
    assert summary.failed > 0.1 * COUNT

    entries = lines(outdir)
    assert {entry["index"] for entry in entries} == set(range(len(fuzzed)))  # each is accounted for
    assert len({(entry["index"], entry["k"]) for entry in entries}) == len(entries)  # and once
    assert all(bool(entry["file"]) != bool(entry.get("error")) for entry in entries)
    named = {entry[kind] for entry in entries for kind in ("file", "map") if entry.get(kind)}
    written = tree(outdir) - {
        "maps",
        "manifest.jsonl",
        "run.json",
        "index.html",
        "index_data.js",
        ".janus-dola",
        ".janus-dola/lock",
    }
    assert written == named  # no file without a line, no line without a file
    outside = {name for name in tree(tmp_path) - before if not name.startswith("deep/er/out")}
    assert outside == {"deep", "deep/er"}
    assert all(len(os.fsencode(name)) <= 255 for name in written)

    for entry in entries[:: len(entries) // 200]:
        if entry["file"]:
            given_line = json.loads(fuzzed[entry["index"]])
            recipe = read_recipe(outdir / entry["file"])
            assert recipe.prompt == entry["prompt"] == given_line["prompt"]
            assert recipe.seed == entry["seed"]
    again = run_batch(prompts, outdir, RunSettings(parallel_size=1, seed=5), skip_bad=True, pipe=pipe)
    assert (again.drawn, again.kept, again.failed) == (0, summary.drawn, summary.failed)
