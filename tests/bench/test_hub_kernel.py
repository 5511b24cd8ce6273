"""What `python -m bench.hub kernel` writes is a kernel of the Hugging Face Hub, and computes what the package computes."""

import re
import runpy
import sys

import pytest
import torch

import kernels
from bench.hub.flatten import flat_modules
from bench.hub.kernel import BACKENDS, VERSION, write_kernel
from janus_dola.kernels import head, philox, reference
from janus_dola.kernels.contrast import jensen_shannon
from kernels import _rust as format_of_kernels
from tests.kernels.cases import CPU_BACKENDS, dola


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "early-exit"
    write_kernel(folder, "somebody")
    return folder


@pytest.fixture(scope="module")
def early_exit(folder):
    return kernels.get_local_kernel(folder, backend="cpu")


def test_hugging_face_reads_its_description_and_finds_each_file_whole(folder):
    described = format_of_kernels.Build.open(folder)
    assert {str(backend) for backend in described.general.backends} == set(BACKENDS)
    for backend in BACKENDS:
        variant = folder / "build" / f"torch-{backend}"
        metadata = format_of_kernels.Metadata.read_from_file(variant / "metadata.json")
        assert (str(metadata.name), metadata.version, metadata.license) == ("early-exit", VERSION, "apache-2.0")
        assert metadata.id in (variant / "_ops.py").read_text()
        metadata.digest.validate(format_of_kernels.Digest.hash_variant(metadata.digest.algorithm, variant))
        assert sum(path.stat().st_size for path in variant.iterdir()) <= 200_000


def test_it_imports_python_torch_triton_and_itself(folder):
    sources = "".join(path.read_text() for path in (folder / "build" / "torch-cuda").glob("*.py"))
    assert "janus_dola" not in sources
    imported = {name.split(".")[0] for name in re.findall(r"^(?:from|import) ([a-z]\w*)", sources, re.MULTILINE)}
    assert imported - set(sys.stdlib_module_names) == {"torch", "triton"}


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_codes_layers_and_scores_are_those_of_the_package(early_exit, backend):
    random = torch.Generator().manual_seed(1)
    states = torch.randn(4, 6, 48, generator=random)
    weights = (torch.ones(48), 1e-6, torch.randn(203, 40, generator=random) / 4, torch.randn(203, generator=random))
    weights += (torch.randn(40, 48, generator=random) / 7, torch.randn(40, generator=random))
    seeds, ours = torch.tensor([3, 1, 2**33]), dola()
    theirs = early_exit.SamplingParams("dola", ours.contrast)
    drawn = early_exit.sample_codes(states, early_exit.Head(*weights), theirs, seeds, 9, backend)
    expected = head.sample_codes(states, head.Head(*weights), ours, seeds, 9, "reference")
    assert drawn.code.tolist() == expected.code.tolist()
    assert drawn.layer.tolist() == expected.layer.tolist()
    actual = early_exit.head_scores(states, early_exit.Head(*weights), theirs, backend).scores
    exact = reference.head_scores(
        states.double(), _double(weights), head.SamplingTensors.repeat(ours, 3, states.double())
    )
    torch.testing.assert_close(actual.double(), exact.scores, atol=1e-3, rtol=0)


def _double(weights):
    return head.Head(*(each.double() if isinstance(each, torch.Tensor) else each for each in weights))


def test_divergence_and_noise_are_those_of_the_package(early_exit):
    log_p, log_q = torch.randn(2, 3, 5000).log_softmax(-1)
    assert torch.equal(early_exit.jensen_shannon(log_p, log_q), jensen_shannon(log_p, log_q))
    seeds = torch.tensor([5, 2**50])
    assert torch.equal(early_exit.gumbel_noise(seeds, 7, 999), philox.gumbel_noise(seeds, 7, 999))


def test_its_card_draws(folder, monkeypatch):
    """`LOCAL_KERNELS` leads from its name on the Hub to the folder."""
    monkeypatch.setenv("LOCAL_KERNELS", f"somebody/early-exit={folder}")
    names = {}
    exec(re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1), names)
    assert [each.shape for each in (names["drawn"].code, names["drawn"].layer, names["drawn"].jsd)] == [(4,)] * 3
    assert names["drawn"].finite.all()


def test_its_own_tests_pass(folder, monkeypatch):
    monkeypatch.setenv("LOCAL_KERNELS", f"somebody/early-exit={folder}")
    own = runpy.run_path(str(folder / "tests" / "test_early_exit.py"))
    assert own["BACKENDS"] == list(CPU_BACKENDS)
    for backend in CPU_BACKENDS:
        own["test_codes_are_those_of_the_formulas"](backend)
    own["test_divergence"]()
    own["test_noise_is_known_and_apart_for_each_image"]()


def test_modules_that_cannot_lie_side_by_side_are_refused():
    with pytest.raises(
        ValueError, match=r"must have different last parts, got janus_dola.kernels.head and janus_dola.head"
    ):
        flat_modules("janus_dola.head", "janus_dola.kernels.head")
    with pytest.raises(ValueError, match=r"must be a module, or come from one, got janus_dola.nothing"):
        flat_modules("janus_dola.nothing")
