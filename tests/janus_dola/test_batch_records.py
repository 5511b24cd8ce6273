import io
import json
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_dola import DoLaConfig
from janus_dola.batch import Look, Settings
from janus_dola.batch.batches import batches
from janus_dola.batch.records import BadRecord, Record, numbered, open_records

SETTINGS = Settings(parallel_size=2, seed=10)


def read(path, settings=SETTINGS):
    return list(open_records(path).read(settings))


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.json", '{"prompts": ["a", "b\\nc", ""]}', ["a", "b\nc", ""]),
        ("a.json", '\ufeff{"about": {"prompts": ["x"], "l": [1, [2]]}, "prompts": ["a"], "n": 1}', ["a"]),
        ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": "b", "seed": null}\r\n', ["a", "b"]),
        ("a.txt", "a\n\n  b \r\n{\u2028}\n", ["a", "  b ", "{\u2028}"]),
        ("a.txt", "\ufeffa\x0bb", ["a\x0bb"]),
        ("lines", '{"prompt": "a"}\n{"prompt": "b"}', ["a", "b"]),
        ("json", '{"prompts": ["a",\n"b"]}', ["a", "b"]),
        ("json", '\n{\n"prompts": ["a"]}', ["a"]),
        ("text", "a\nb", ["a", "b"]),
    ],
)
def test_every_form_gives_its_prompts(tmp_path, name, content, prompts):
    (tmp_path / name).write_bytes(content.encode())
    assert [record.prompt for record in read(tmp_path / name)] == prompts
    assert [record.index for record in read(tmp_path / name)] == list(range(len(prompts)))


def test_stdin_can_be_read_twice(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "a"}\n{"prompt": "b"}\n')))
    records = open_records("-")
    for _ in range(2):
        assert [record.prompt for record in records.read(SETTINGS)] == ["a", "b"]


def test_a_line_may_have_its_own_settings(tmp_path):
    path = tmp_path / "a.jsonl"
    fields = {"prompt": "x", "id": "mine", "seed": 7, "parallel_size": 3, "cfg_weight": 2, "alpha": 0.5}
    path.write_text(json.dumps({**fields, "candidate_layers": [4, 2]}))
    assert read(path) == [Record(0, "x", "mine", 7, 3, Look(2.0, 1.0, DoLaConfig([4, 2], 0.5)))]
    of_run = Settings(look=Look(dola=DoLaConfig([2, 6], 0.3, 4)))
    path.write_text('{"prompt": "x", "alpha": 0.2}')
    assert read(path, of_run)[0].look == Look(dola=DoLaConfig([2, 6], 0.2, 4))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", 'must be a JSON object such as {"prompt": "..."}, got not json'),
        ('["a"]', "must be a JSON object"),
        ("[" * 100_000, "must be a JSON object"),
        ("{}", "prompt must be a string, got None"),
        ('{"prompt": 3}', "prompt must be a string, got 3"),
        ('{"prompt": "\\ud800"}', "must be valid Unicode, got '\\ud800'"),
        ('{"prompt": "a", "id": 1.5}', "id must be a string or an int, got 1.5"),
        ('{"prompt": "a", "promt": "b"}', "keys must be among prompt, id, seed"),
        ('{"prompt": "a", "seed": -1}', "seed must be an int in 0 .. 9223372036854775805, got -1"),
        ('{"prompt": "a", "seed": 9223372036854775806}', "seed must be an int in"),
        ('{"prompt": "a", "seed": true}', "seed must be an int in"),
        ('{"prompt": "a", "parallel_size": 0}', "parallel_size must be an int in 1 .. 65536, got 0"),
        ('{"prompt": "a", "cfg_weight": "5"}', "cfg_weight must be a number, got '5'"),
        ('{"prompt": "a", "cfg_weight": NaN}', "cfg_weight must be a finite number, got nan"),
        ('{"prompt": "a", "cfg_weight": 1' + "0" * 400 + "}", "cfg_weight must be a finite number"),
        ('{"prompt": "a", "alpha": 2}', "alpha must lie in [0, 1], got 2.0"),
        ('{"prompt": "a", "candidate_layers": 2}', 'candidate_layers must be "auto" or a list of ints, got 2'),
        ('{"prompt": "a", "candidate_layers": []}', 'candidate_layers must be "auto" or a list of ints'),
        ('{"prompt": "a", "candidate_layers": [[2]]}', 'candidate_layers must be "auto" or a list of ints'),
    ],
)
def test_malformed_lines_are_reported_with_their_line(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n\n{line}\n{{"prompt": "b"}}\n')
    good, bad, also_good = read(path)
    assert (good.prompt, also_good.prompt, also_good.index) == ("a", "b", 2)
    assert isinstance(bad, BadRecord)
    assert bad.index == 1
    assert bad.reason.startswith("line 3: ")
    assert reason in bad.reason
    assert len(bad.reason) < 250


def test_alpha_without_dola_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x", "alpha": 0.2}')
    (bad,) = read(path, Settings(look=Look(dola=None)))
    assert bad.reason == "line 1: alpha must be left out where the run is without DoLa"


def test_text_that_is_not_utf_8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\n\xff\xfe\nb")
    _, bad, last = read(tmp_path / "a.txt")
    assert bad.reason.startswith("line 2: must be UTF-8")
    assert last.prompt == "b"


def test_seeds_go_on_through_mixed_parallel_sizes(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "a"}\n{"prompt": "b", "parallel_size": 5}\n{"prompt": 3}\n{"prompt": "c", "seed": 0}\n{"prompt": "d"}\n'
    )
    found = [(first, [task.seed for task in tasks]) for first, _, tasks in numbered(read(path), SETTINGS)]
    assert found == [
        (0, [10, 11]),
        (2, [12, 13, 14, 15, 16]),
        (7, []),  # a bad one takes its place
        (9, [0, 1]),
        (11, [21, 22]),
    ]


def test_seeds_are_those_of_generate_where_the_parallel_size_is_one(mini):
    tasks = [task for _, _, tasks in numbered(read_list(["a", "b", "c"]), SETTINGS) for task in tasks]
    assert [task.seed for task in tasks] == [10 + i * 2 + k for i in range(3) for k in range(2)]


def read_list(prompts):
    return list(open_records(prompts).read(SETTINGS))


@given(looks=st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0]), max_size=60), size=st.integers(1, 7))
def test_batches_lose_no_image_and_double_none(looks, size):
    prompts = [{"prompt": str(i), "cfg_weight": look} for i, look in enumerate(looks)]
    tasks = [task for _, _, tasks in numbered(read_list(prompts), SETTINGS) for task in tasks]
    found = list(batches(tasks, size))
    assert sorted(task.number for batch in found for task in batch) == list(range(2 * len(looks)))
    assert all(len({task.look for task in batch}) == 1 and 1 <= len(batch) <= size for batch in found)
    if len(set(looks)) == 1:
        assert all(len(batch) == size for batch in found[:-1])


@pytest.mark.parametrize("form", ["json", "jsonl", "txt"])
def test_reading_many_prompts_takes_the_memory_of_a_few(tmp_path, form):
    path = tmp_path / f"a.{form}"
    count, words = 40_000, "a large red circle on white, " * 10
    with path.open("w") as file:
        if form == "json":
            file.write('{"prompts": [' + f'"{words}",' * (count - 1) + f'"{words}"]}}')
        else:
            file.writelines((f'{{"prompt": "{words}"}}\n' if form == "jsonl" else f"{words}\n") for _ in range(count))
    tracemalloc.start()
    found = sum(1 for _ in open_records(path).read(SETTINGS))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == count
    assert peak < 1_000_000 < path.stat().st_size / 10
