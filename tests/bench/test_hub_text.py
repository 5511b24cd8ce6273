"""What `python -m bench.hub text` writes is a decoding function that transformers loads without the package."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM, dynamic_module_utils

from bench.hub.text import write_text
from janus_dola.contrasts import DoLaConfig, SLEDConfig
from janus_dola.text import dola_generate
from tests.janus_dola.text_models import padded_batch, text_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "dola"
    write_text(folder, "somebody")
    return folder


@pytest.fixture
def generate(folder, tmp_path, monkeypatch):
    """`generate` of a tiny Llama by the folder, whose files are copied below `tmp_path`."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    model = text_model("Llama")

    def run(**settings):
        return model.generate(
            **padded_batch(), max_new_tokens=12, custom_generate=str(folder), trust_remote_code=True, **settings
        )

    return run


@pytest.mark.parametrize(
    ("settings", "contrast"),
    [
        ({}, None),
        ({"contrast": "dola", "alpha": 0.5}, DoLaConfig(alpha=0.5)),
        ({"candidate_layers": [1, 4]}, DoLaConfig([1, 4])),
        ({"contrast": "sled", "evolution_rate": 3.0, "evolution_scale": 40}, SLEDConfig("auto", 3.0, 40)),
        ({"dola_layers": "high"}, None),
    ],
)
def test_words_and_layers_are_those_of_the_package(generate, settings, contrast):
    sampling = {"do_sample": True, "temperature": 0.9, "return_dict_in_generate": True}
    torch.manual_seed(5)
    actual = generate(**settings, **sampling)
    sampling |= {"dola_layers": settings["dola_layers"]} if "dola_layers" in settings else {}
    model = text_model("Llama")
    torch.manual_seed(5)
    expected = model.generate(
        **padded_batch(), max_new_tokens=12, custom_generate=dola_generate, contrast=contrast, **sampling
    )
    assert actual.sequences.tolist() == expected.sequences.tolist()
    assert actual.premature_layers.tolist() == expected.premature_layers.tolist()
    assert type(actual).__module__.startswith("transformers_modules.dola")


def test_an_unknown_method_is_an_error_of_one_line(generate):
    with pytest.raises(ValueError, match=r"^contrast must be one of \['dola', 'sled'\], got 'vcd'$"):
        generate(contrast="vcd")


def test_it_needs_no_package_of_ours(folder):
    sources = "".join(path.read_text() for path in (folder / "custom_generate").glob("*.py"))
    assert "janus_dola" not in sources
    imported = {name.split(".")[0] for name in re.findall(r"^(?:from|import) ([a-z]\w*)", sources, re.MULTILINE)}
    required = (folder / "custom_generate" / "requirements.txt").read_text()
    assert {"torch", "transformers"} <= imported
    assert {"torch", "transformers"} == set(re.findall(r"^\w+", required, re.MULTILINE))


def test_its_card_runs(folder, tmp_path, monkeypatch):
    """With a tiny model in the place of the one that it names."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    card = (folder / "README.md").read_text()
    assert "- custom_generate\n" in card.split("---")[1]
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    code = code.replace('"somebody/dola"', repr(str(folder)))

    class Words:
        def __call__(self, text, return_tensors):
            return padded_batch()

        def decode(self, ids):
            return ids

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda name: Words())
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda name: text_model("Llama"))
    names = {}
    exec(code, names)
    assert names["out"].shape == (3, 7 + 16)
