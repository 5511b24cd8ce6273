"""The notebook of examples/ runs from its first cell to its last, with the mini model in the place of a large one."""

import ast
import json
import subprocess
from pathlib import Path

import torch

from tests.run_readme import with_mini

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_cell(source: str, names: dict) -> object:
    """Runs a cell as a notebook does, and returns what it shows: its last line, if that is an expression."""
    tree = ast.parse("\n".join(line for line in source.splitlines() if not line.startswith("%")))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    notebook = json.loads((EXAMPLES / "janus_pro.ipynb").read_text(encoding="utf-8"))
    names, shown = {}, []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            shown.append(run_cell(with_mini("".join(cell["source"])), names))
    assert [each.size for each in shown if hasattr(each, "size")] == [
        (4 * 64, 2 * 64),
        names["dola"].layer_map(0, 0).size,
    ]
    assert not torch.equal(names["baseline"].tokens, names["dola"].tokens)
    assert len(list((tmp_path / "teapots").iterdir())) == 4
    assert commands[0][1:] == ["-m", "janus_dola", "info", "mini"]
