"""What lies in examples/ runs, with the mini model in the place of a large one: the notebook, GRPO, the nodes of ComfyUI.

No package on PyPI brings ComfyUI's own loader, so a stand-in of its interface loads and runs the nodes.
"""

import ast
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from examples import grpo
from janus_dola import DoLaConfig, SLEDConfig
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


def test_two_steps_of_grpo():
    """What is trained is what was drawn from, after an update, too; and something is learnt."""
    record = grpo.train(0, steps=2, words=2, images=2, evaluated=2, dtype="float64")
    for step in record["steps"]:
        assert step["ratio"] == pytest.approx(1, abs=1e-6)
        assert step["largest |delta log p|"] <= 1e-5
    assert record["steps"][0]["entropy"] != record["steps"][1]["entropy"]
    assert record["right"].keys() == {0, 2}


class Interrupted(Exception):
    pass


@pytest.fixture
def comfy(monkeypatch):
    """Stands in for what ComfyUI gives its nodes, and loads the pack as ComfyUI loads it: by its folder's path."""
    state = SimpleNamespace(progress=[], stop_at=math.inf)

    class ProgressBar:
        def __init__(self, total):
            self.total = total

        def update_absolute(self, value, total=None, preview=None):
            state.progress.append(value / self.total)

    def stop():
        if len(state.progress) >= state.stop_at:
            raise Interrupted

    management = SimpleNamespace(throw_exception_if_processing_interrupted=stop)
    package = SimpleNamespace(utils=SimpleNamespace(ProgressBar=ProgressBar), model_management=management)
    modules = {"comfy": package, "comfy.utils": package.utils, "comfy.model_management": management}
    folder = str(EXAMPLES / "comfyui")
    spec = importlib.util.spec_from_file_location(folder.replace(".", "_x_"), f"{folder}/__init__.py")
    pack = importlib.util.module_from_spec(spec)
    for name, module in {**modules, spec.name: pack}.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(pack)
    state.nodes = pack.NODE_CLASS_MAPPINGS
    return state


def run_workflow(comfy, **changes):
    """Checks the inputs of the pack's nodes as ComfyUI does, then runs each, under inference mode."""
    workflow, outputs = json.loads((EXAMPLES / "comfyui" / "workflow.json").read_text(encoding="utf-8")), {}
    for number, node in workflow.items():
        if node["class_type"] not in comfy.nodes:  # ComfyUI's own
            assert outputs[node["inputs"]["images"][0]][node["inputs"]["images"][1]].ndim == 4
            continue
        kind = comfy.nodes[node["class_type"]]
        allowed, values = kind.INPUT_TYPES()["required"], {}
        assert allowed.keys() == node["inputs"].keys()
        for name, value in node["inputs"].items():
            value = changes.get(name, value)
            if isinstance(value, list):
                value = outputs[value[0]][value[1]]
            elif isinstance(allowed[name][0], list):
                assert value in allowed[name][0]
            else:
                types = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
                assert type(value) is types[allowed[name][0]] is type(allowed[name][1]["default"])
                assert allowed[name][1].get("min", value) <= value <= allowed[name][1].get("max", value)
            values[name] = value
        with torch.inference_mode():
            outputs[number] = getattr(kind(), kind.FUNCTION)(**values)
        assert len(outputs[number]) == len(kind.RETURN_TYPES)
    return outputs["2"]


@pytest.mark.parametrize(
    ("widgets", "settings"),
    [
        (
            {"alpha": 0.5, "candidate_layers": "2,4", "premature_layer": "4", "top_p": 0.9},
            {"contrast": DoLaConfig([2, 4], 0.5, 4), "top_p": 0.9},
        ),
        ({"contrast": "sled", "evolution_scale": 60}, {"contrast": SLEDConfig(evolution_scale=60)}),
        ({"contrast": "none", "negative_prompt": "blue"}, {"contrast": None, "negative_prompt": "blue"}),
    ],
)
def test_nodes_of_comfyui_draw_with_all_settings(comfy, mini, widgets, settings):
    changes = {"model": "mini", "device": "cpu", "prompt": "a red cross", "images": 1, "seed": 7}
    images, maps = run_workflow(comfy, **changes, **widgets)
    expected = mini.generate("a red cross", 1, seed=7, **settings)
    baseline = mini.generate("a red cross", 1, seed=7, **{**settings, "contrast": None})
    beside = [torch.from_numpy(np.array(each.images[0][0])) for each in (baseline, expected)]
    assert torch.equal((images * 255).round().byte(), torch.cat(beside, 1)[None])
    assert maps.shape == (1, *np.array(expected.layer_map(0, 0)).shape)
    assert comfy.progress[-1] == 1
    assert comfy.progress == sorted(comfy.progress)


def test_nodes_of_comfyui_stop_when_its_user_says_so(comfy):
    comfy.stop_at = 3
    with pytest.raises(Interrupted):
        run_workflow(comfy, model="mini", device="cpu", prompt="a red cross")
    assert len(comfy.progress) == 3


def test_glm_image_hands_its_codes_to_diffusers(tmp_path, monkeypatch):
    """A stand-in for diffusers' pipeline has the models, and takes what the real one takes."""
    pytest.importorskip("transformers.models.glm_image", reason="needs transformers 5")
    from tests.janus_dola import glm_image

    class Pipeline:
        def __init__(self, name, torch_dtype):
            self.processor = glm_image.tokenizer()
            self.vision_language_encoder = glm_image.model(self.processor).to(torch_dtype)

        def to(self, device):
            return self

        def __call__(self, prompts, prior_token_ids, height, width):
            assert prior_token_ids.dtype == torch.int64
            assert prior_token_ids.shape == (len(prompts), height // 16 * width // 16)
            assert ((prior_token_ids >= 0) & (prior_token_ids < glm_image.CODES)).all()
            return SimpleNamespace(images=[Image.new("RGB", (width, height)) for _ in prompts])

    monkeypatch.chdir(tmp_path)
    pipeline = SimpleNamespace(from_pretrained=Pipeline)
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(GlmImagePipeline=pipeline))
    source = (EXAMPLES / "glm_image.py").read_text(encoding="utf-8")
    exec(compile(source.replace("cuda", "cpu").replace("1024", "192"), "glm_image.py", "exec"), {})
    assert [Image.open(tmp_path / f"glm_image_{i}.png").size for i in range(2)] == [(192, 192)] * 2
