import io
import json
import sys
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from janus_dola import DoLaConfig
from janus_dola.batch import RunSettings
from janus_dola.batch.prompts import ImageTask, PromptSource
from janus_dola.batch.worker import batches
from janus_dola.settings import DrawSettings
from tests.bounds import bounded

SETTINGS = RunSettings(parallel_size=2, seed=10)


def read(path, settings=SETTINGS, prompt_key=None):
    return list(PromptSource(path, prompt_key).read(settings))


def prompts_of(path):
    return [record.tasks[0].prompt for record in read(path)]


def task(index, prompt, id=None, seed=None, drawing=None, extra=None):
    """The first image of a prompt after others of two images each."""
    return ImageTask(
        2 * index,
        index,
        0,
        prompt,
        10 + 2 * index if seed is None else seed,
        drawing or DrawSettings(),
        id,
        extra or {},
    )


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.json", '{"prompts": ["a", "b\\nc", ""]}', ["a", "b\nc", ""]),
        ("a.json", '\ufeff{"about": {"prompts": ["x"], "l": [1, [2]]}, "prompts": ["a"], "n": 1}', ["a"]),
        ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": "b", "seed": null}\r\n', ["a", "b"]),
        ("a.txt", "a\n\n  b \r\n{\u2028}\n", ["a", "  b ", "{\u2028}"]),
        ("a.txt", "\ufeffa\x0bb", ["a\x0bb"]),
        ("a.json", '["a", {"prompt": "b", "tag": 1}]', ["a", "b"]),
        ("a.json", '[{"Prompt": "a", "prompt_id": 3}]', ["a"]),
        ("a.ndjson", '{"tag": "colors", "include": [], "prompt": "a"}', ["a"]),
        ("a.tsv", 'Prompt\tCategory\na red circle\tBasic\n\nwords "b"\tx\nc', ["a red circle", 'words "b"', "c"]),
        ("a.csv", '\ufeffn,prompt\r\n1,"a, ""b""\nc"\r\n2,d\r\n', ['a, "b"\nc', "d"]),
        ("a.csv", "prompt;n\na, b;1\n", ["a, b"]),
        ("a.csv", "n, Prompt \r\n1,a\r\n", ["a"]),
    ],
)
def test_every_form_gives_its_prompts(tmp_path, name, content, prompts):
    (tmp_path / name).write_bytes(content.encode())
    assert prompts_of(tmp_path / name) == prompts
    assert [record.index for record in read(tmp_path / name)] == list(range(len(prompts)))


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ('{"prompt": "a"}\n{"prompt": "b"}\n', ["a", "b"]),
        ('{"prompts": ["a",\n"b"]}', ["a", "b"]),
        ('\n{\n"prompts": ["a"]}', ["a"]),
        ('["a red circle", "a blue square"]', ["a red circle", "a blue square"]),
        ("Prompt\tCategory\na\tBasic\n", ["a"]),
        ('"n","prompt"\n1,a\n', ["a"]),
        ("a, prompt\nb", ["a, prompt", "b"]),
    ],
)
def test_stdin_is_told_by_its_first_line_and_can_be_read_twice(monkeypatch, content, prompts):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    records = PromptSource("-")
    for _ in range(2):
        assert [record.tasks[0].prompt for record in records.read(SETTINGS)] == prompts
    assert not records.changed()


def test_a_line_may_have_its_own_settings(tmp_path):
    path = tmp_path / "a.jsonl"
    fields = {"prompt": "x", "id": "mine", "seed": 7, "parallel_size": 3, "cfg_weight": 2, "alpha": 0.5}
    path.write_text(json.dumps({**fields, "candidate_layers": [4, 2]}))
    (record,) = read(path)
    assert record.tasks[0] == task(0, "x", "mine", 7, DrawSettings(2.0, 1.0, DoLaConfig([4, 2], 0.5)))
    assert [(each.k, each.seed) for each in record.tasks] == [(0, 7), (1, 8), (2, 9)]
    path.write_text('{"prompt": "x", "negative_prompt": "blue"}')
    assert read(path)[0].tasks[0].drawing == DrawSettings(negative_prompt="blue")
    path.write_text('{"prompt": "x", "negative_prompt": ["blue"]}')
    assert "negative_prompt must be a string, got ['blue']" in read(path)[0].fault
    path.write_text('{"prompt": "x", "dola": false, "temperature": 0.5}')
    assert read(path)[0].tasks[0].drawing == DrawSettings(5.0, 0.5, None)
    path.write_text('{"prompt": "x", "dola": true, "premature_layer": "final"}')
    assert read(path, RunSettings(drawing=DrawSettings(contrast=None)))[0].tasks[0].drawing == DrawSettings(
        contrast=DoLaConfig(premature_layer="final")
    )
    path.write_text('{"prompt": "x", "dola": null}')
    assert read(path)[0].tasks[0].drawing == DrawSettings()
    for off in ('"contrast": null', '"contrast": "none"'):
        path.write_text(f'{{"prompt": "x", {off}}}')
        assert read(path)[0].tasks[0].drawing == DrawSettings(contrast=None)
    path.write_text('{"prompt": "x", "dola": "no"}')
    assert "dola must be true or false, got 'no'" in read(path)[0].fault
    path = tmp_path / "a.csv"
    path.write_text("prompt,dola,premature_layer,temperature\nx,false,,0.5\ny,,final,\nz,,3,\n")
    assert [record.tasks[0].drawing for record in read(path)] == [
        DrawSettings(5.0, 0.5, None),
        DrawSettings(contrast=DoLaConfig(premature_layer="final")),
        DrawSettings(contrast=DoLaConfig(premature_layer=3)),
    ]
    path = tmp_path / "a.jsonl"
    of_run = RunSettings(drawing=DrawSettings(contrast=DoLaConfig([2, 6], 0.3, 4)))
    path.write_text('{"prompt": "x", "alpha": 0.2}')
    assert read(path, of_run)[0].tasks[0].drawing == DrawSettings(contrast=DoLaConfig([2, 6], 0.2, 4))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", 'must be a JSON object such as {"prompt": "..."}, got \'not json\''),
        ('["a"]', "must be a JSON object"),
        ("[" * 100_000, "must be a JSON object"),
        ("{}", "must have the key 'prompt', got none; --prompt-key names another"),
        ('{"caption": "a", "n": 1}', "must have the key 'prompt', got 'caption', 'n'; --prompt-key names another"),
        ('{"PROMPT": "a", "Prompt": "b"}', "must have the key 'prompt', got 'PROMPT', 'Prompt'"),
        ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' stands there twice"),
        ('\x1b]0;x\x07{"prompt": 5}', "got '\\x1b]0;x\\x07{\"prompt\": 5}'"),
        ('{"prompt": "a", "seed": ' + "9" * 4301 + "}", "an integer of 4301 digits"),
        ('{"prompt": "' + "a" * 70_000 + '"}', "prompt must have at most 65536 characters, got 70000"),
        ('{"prompt": "' + "a" * 2**20 + '"}', "must be at most 1 MiB, got more"),
        ('{"prompt": "a", "n": ' + "[" * 30 + "]" * 30 + "}", "keys must be nested at most 20 deep"),
        ('{"prompt": "a", "n": NaN}', "keys must hold what JSON can, got {'n': nan}"),
        ('{"prompt": "a", "dtype": "float16"}', "dtype must be the same for all prompts of a run, got 'float16'"),
        ('{"prompt": 3}', "prompt must be a string, got 3"),
        ('{"prompt": "\\ud800"}', "must be valid Unicode, got '\\ud800'"),
        ('{"prompt": "a", "tag": ["\\udfff"]}', 'must be valid Unicode, got \'{"tag": ["\\udfff'),
        ('{"prompt": "a", "id": 1.5}', "id must be a string or an int, got 1.5"),
        ('{"prompt": "a", "seed": -2}', 'seed must be -1, "random" or an int in 0 .. 9223372036854775806, got -2'),
        ('{"prompt": "a", "seed": 9223372036854775807}', 'seed must be -1, "random" or an int in'),
        ('{"prompt": "a", "seed": true}', 'seed must be -1, "random" or an int in'),
        ('{"prompt": "a", "parallel_size": 0}', "parallel_size must be an int in 1 .. 65536, got 0"),
        ('{"prompt": "a", "cfg_weight": "5"}', "cfg_weight must be a finite number, got '5'"),
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
    assert (good.tasks[0].prompt, also_good.tasks[0].prompt, also_good.index) == ("a", "b", 2)
    assert bad.tasks == []
    assert bad.index == 1
    assert bad.fault.startswith("line 3: ")
    assert reason in bad.fault
    assert len(bad.fault) < 300
    assert bad.fault.isprintable()


def test_alpha_without_dola_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x", "alpha": 0.2}')
    (bad,) = read(path, RunSettings(drawing=DrawSettings(contrast=None)))
    assert bad.fault == "line 1: alpha must be left out with contrast none, since it belongs to dola"


def test_text_that_is_not_utf_8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\n\xff\xfe\nb")
    _, bad, last = read(tmp_path / "a.txt")
    assert bad.fault.startswith("line 2: must be UTF-8")
    assert last.tasks[0].prompt == "b"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_utf_16_is_read_where_its_mark_says_so_and_else_refused(tmp_path, encoding):
    text = "ein roter Kreis\n汉字 😀\n"
    (tmp_path / "a.txt").write_text(text, encoding=encoding)
    assert prompts_of(tmp_path / "a.txt") == text.splitlines()
    (tmp_path / "a.txt").write_bytes(text.encode(encoding)[:-1])
    with pytest.raises(ValueError, match=f"must be the {encoding} that its byte order mark says"):
        read(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text(text, encoding=f"{encoding}-le")
    first, *others = read(tmp_path / "a.txt")
    assert first.fault.endswith("(is it UTF-16 without a byte order mark?)")
    assert all(other.fault for other in others)
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\r\n{"prompt": "b"}', encoding=f"{encoding}-le")
    assert all("without a byte order mark" in record.fault for record in read(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "ein Kreis\r\nüñ\r\n"),
        ("a.csv", 'prompt,n\r\nein Kreis,1\r\n"üñ",2\r\n'),
        ("a.tsv", "n\tprompt\r\n1\tein Kreis\r\n2\tüñ\r\n"),
        ("a.json", '["ein Kreis",\r\n"üñ"]\r\n'),
        ("a.jsonl", '{"prompt": "ein Kreis"}\r\n{"prompt": "üñ"}\r\n'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_form_is_read_as_other_programs_write_it(tmp_path, name, content, encoding):
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert prompts_of(tmp_path / name) == ["ein Kreis", "üñ"]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "1.txt").write_bytes("üñ\r\n".encode(encoding))
    assert prompts_of(folder) == ["üñ"]


def test_files_of_other_forms_are_refused_by_name(tmp_path):
    for name, content, fault in (
        ("lines.json", b'{"prompt": "a"}\n{"prompt": "b"}', r"Extra data: .*; an object a line is \.jsonl"),
        ("other.csv", b"prompt\tn\na\t1\n", r"header must have the key 'prompt', got 'prompt\\tn'"),
        ("wide.csv", "prompt,n\na,1\n".encode("utf-16-le"), r"is it UTF-16 without a byte order mark\?"),
        ("half.txt", "ab".encode("utf-16")[:-1], "must be the utf-16 that its byte order mark says"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"prompt file .*{name} .*{fault}"):
            read(tmp_path / name)
    (tmp_path / "old.txt").write_bytes(b"a red circle\ra blue square\r")
    (bad,) = read(tmp_path / "old.txt")
    assert bad.fault == "line 1: must end in LF or CR LF, got a CR alone: 'a red circle\\ra blue square'"


def test_a_table_with_its_own_settings_and_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        'caption,prompt,id,seed,candidate_layers,note,\na,x,7,3,"[2,4]",n,1\nb,y,,,auto,,2\nc,z,,-2,,,\nd,1,2,3,4,5,6,7\n"e'
    )
    first, second, bad, long, torn = PromptSource(path, "caption").read(SETTINGS)
    of_first = DrawSettings(contrast=DoLaConfig([2, 4]))
    assert first.tasks[0] == task(0, "a", "7", 3, of_first, {"prompt": "x", "note": "n"})
    assert second.tasks[0] == task(1, "b", extra={"prompt": "y"})
    assert bad.fault == 'line 4: seed must be -1, "random" or an int in 0 .. 9223372036854775806, got -2'
    assert long.fault.startswith("line 5: must have at most 7 cells as the header has, got 8: ['d', '1'")
    assert torn.fault.startswith(
        "line 6: a quote begins a cell, and none ends it as far as line 6; a quote that belongs"
    )


def test_other_keys_are_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"tag": "single_object", "include": [{"class": "bench"}], "prompt": "a bench", "Seed": null}')
    extra = {"tag": "single_object", "include": [{"class": "bench"}], "Seed": None}
    assert read(path)[0].tasks[0] == task(0, "a bench", extra=extra)
    assert read([{"Prompt": "a", "size": (1, 2)}])[0].tasks[0] == task(0, "a", extra={"size": [1, 2]})


def test_a_folder_of_prompts(tmp_path):
    for name, text in [("10.txt", "b"), ("1.txt", "\ufeffa\nof two lines\n"), (".hidden", "x")]:
        (tmp_path / name).write_text(text)
    assert [each.tasks[0] for each in read(tmp_path)] == [task(0, "a\nof two lines", "1"), task(1, "b", "10")]
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(ValueError, match=r"must hold \.txt files only, a prompt each, got 'readme\.md'"):
        read(tmp_path)
    (tmp_path / "readme.md").unlink()
    (tmp_path / "2.txt").write_text("")
    with pytest.raises(ValueError, match=r"2\.txt is empty"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "must be a JSON list of prompts, or {\"prompts\": [...]}, each a string or an object, but is not"),
        ("a.json", '{"prompts":["a",' + "9" * 4301 + "]}", "is not JSON: an integer of 4301 digits"),
        ("a.json", '{"prompts":' + "[" * 200_000, "is not JSON: nested too deeply"),
        ("a.json", '{"prompts":["' + "a" * 50_000_000 + '"]}', "must be at most 4 MiB of JSON; longer lists are .jsonl"),
        ("a.json", "[" + "1," * 2**17 + "1]", "must hold at most 131072 prompts, got 131073; longer lists are .jsonl"),
        ("a.json", '{"prompts":["a"],"prompts":["b"]}', "the key 'prompts' stands there twice"),
        ("a.json", '{"0001": {"prompt": "a"}}', "each a string or an object, got {'0001': {'prompt': 'a'}}"),
        ("a.csv", "id,text\n1,a\n", "header must have the key 'prompt', got 'id', 'text'; --prompt-key names another"),
        ("a.csv", "prompt,prompt\n1,a\n", "header must have each column once, got 'prompt' again"),
        ("a.csv", "", "header must have the key 'prompt', got none"),
        ("a.md", "a", "must end in one of .json, .jsonl, .ndjson, .txt, .csv, .tsv, got '.md'; prompts of another name"),
        ("prompts", "a", "must end in one of .json, .jsonl, .ndjson, .txt, .csv, .tsv, got ''"),
    ],
)  # fmt: skip
def test_files_that_are_refused_as_a_whole(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"prompt file {tmp_path / name} ") as raised:
        read(tmp_path / name)
    assert message in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400


def test_a_key_where_there_are_none(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(ValueError, match="has no keys, so that prompt_key must be left out, got 'caption'"):
            list(PromptSource(path, "caption").read(SETTINGS))


def test_devices_and_things_that_are_no_prompts():
    with pytest.raises(ValueError, match="prompt file /dev/zero must be a file, a folder or a pipe, got a device"):
        read("/dev/zero")
    for prompts in ({"prompts": ["a"]}, 5, None):
        with pytest.raises(ValueError, match="prompts must be a file, or strings and mappings, got"):
            PromptSource(prompts)
    assert prompts_of(prompt for prompt in "ab") == ["a", "b"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["prompt", "prompts", "seed", "n"]), inner),
    max_leaves=12,
)  # fmt: skip
HUGE = st.sampled_from([b"9" * 5000, b"[" * 100_000, b'{"prompt":' * 50_000, b'"' + b"a" * 2_000_000 + b'"', b"1e999"])
CONTENT = JSON.map(lambda value: json.dumps(value).encode()) | HUGE | st.binary(max_size=40)


@settings(max_examples=300, database=None, suppress_health_check=list(HealthCheck))
@given(
    pieces=st.lists(CONTENT, min_size=1, max_size=4),
    joint=st.sampled_from([b"\n", b",", b"\t"]),
    name=st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.tsv", "a.txt", "p"]),
    framed=st.booleans(),
)
def test_any_content_gives_records_or_one_line(tmp_path_factory, pieces, joint, name, framed):
    content = joint.join(pieces)
    if framed:
        content = b'{"prompts": [' + content + b"]}" if name == "a.json" else b"prompt,n\n" + content
    folder = tmp_path_factory.mktemp("any", numbered=True)
    (folder / name).write_bytes(content)
    reasons = []
    try:
        with bounded():
            for record in read(folder / name):
                assert bool(record.tasks) != bool(record.fault)
                for each in record.tasks[:1]:
                    each.prompt.encode()
                    json.dumps(each.extra, allow_nan=False)
                reasons.append(record.fault)
    except ValueError as error:
        reasons.append(str(error))
    (folder / name).unlink()
    assert all((reason.isprintable() or not reason) and len(reason) < 500 for reason in reasons)


def test_seeds_go_on_through_mixed_parallel_sizes(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "a"}\n{"prompt": "b", "parallel_size": 5}\n{"prompt": 3}\n{"prompt": "c", "seed": 0}\n{"prompt": "d"}\n'
    )
    actual = [(each.first, [task.seed for task in each.tasks]) for each in read(path)]
    assert actual == [
        (0, [10, 11]),
        (2, [12, 13, 14, 15, 16]),
        (7, []),  # a bad one takes its place
        (9, [0, 1]),
        (11, [21, 22]),
    ]


def test_seeds_are_those_of_generate_where_the_parallel_size_is_one(mini):
    tasks = [task for each in read(["a", "b", "c"]) for task in each.tasks]
    assert [task.seed for task in tasks] == [10 + i * 2 + k for i in range(3) for k in range(2)]


@given(looks=st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0]), max_size=60), size=st.integers(1, 7))
def test_batches_lose_no_image_and_double_none(looks, size):
    prompts = [{"prompt": str(i), "cfg_weight": look} for i, look in enumerate(looks)]
    tasks = [task for each in read(prompts) for task in each.tasks]
    actual = list(batches(tasks, size))
    assert sorted(task.number for batch in actual for task in batch) == list(range(2 * len(looks)))
    assert all(len({task.drawing for task in batch}) == 1 and 1 <= len(batch) <= size for batch in actual)
    if len(set(looks)) == 1:
        assert all(len(batch) == size for batch in actual[:-1])


@pytest.mark.parametrize("form", ["jsonl", "csv", "txt"])
def test_reading_many_prompts_takes_the_memory_of_a_few(tmp_path, form):
    path = tmp_path / f"a.{form}"
    count, words = 10_000, "a large red circle on white, " * 40
    with path.open("w") as file:
        if form == "csv":
            file.write("prompt,n\n")
        line = {"jsonl": f'{{"prompt": "{words}"}}\n', "csv": f'"{words}",1\n', "txt": f"{words}\n"}[form]
        file.writelines(line for _ in range(count))
    tracemalloc.start()
    actual = sum(1 for _ in PromptSource(path).read(SETTINGS))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert actual == count
    assert peak < 1_000_000 < path.stat().st_size / 10
