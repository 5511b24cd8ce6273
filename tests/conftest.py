import inspect
import os

import hypothesis
import pytest
import torch
import transformers

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Without it cuBLAS warns at each product while torch's deterministic algorithms are on, and our warnings are errors here.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 leaves its processes a thirtieth of a busy core
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the kernels are imported: they run in numpy then
from janus_dola import JanusDoLa
from tests.rounding import Rounding

hypothesis.settings.register_profile("unhurried", deadline=None)  # the first call of an operation can be slow
hypothesis.settings.load_profile("unhurried")
transformers.utils.logging.disable_progress_bar()


def pytest_addoption(parser):
    parser.addoption(
        "--rounding", type=int, metavar="SEED", help="perturb products by their rounding, see tests/rounding.py"
    )
    parser.addoption("--all-kernels", action="store_true", help="compile every kernel in every configuration")


@pytest.fixture(autouse=True, scope="session")
def rounding(request):
    """Takes other roundings than this machine's, if `--rounding` is given."""
    seed = request.config.getoption("--rounding")
    with pytest.MonkeyPatch.context() as patch:
        if seed is not None:
            Rounding(seed).install(patch)
        yield


@pytest.fixture
def one_rounding(request):
    """Skips tests that compare bits with those of another process, which `--rounding` does not perturb."""
    if request.config.getoption("--rounding") is not None:
        pytest.skip("other processes are not perturbed")


@pytest.fixture(scope="session")
def mini() -> JanusDoLa:
    """Loads the shipped model in float32 on the CPU."""
    return JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def deepseek(mini) -> JanusDoLa:
    """Makes a small model with random weights in DeepSeek's classes, in float32 on the CPU."""
    from tests.deepseek_stand_in import MultiModalityCausalLM

    return JanusDoLa(MultiModalityCausalLM(len(mini.tokenizer)).eval().requires_grad_(False), mini.tokenizer)


@pytest.fixture(scope="session")
def mini_hidden_states(mini) -> torch.Tensor:
    """Returns [4, 8, 192]: layers 2, 4, 6 and 8 of the mini model for four images, in the middle of being drawn."""
    from janus_dola.kernels.block_torch import run_whole
    from janus_dola.models.weights import WeightReader

    words = [
        "a large red circle on white",
        "a small blue square on grey",
        "a green cross",
        "a large yellow triangle on black",
    ]
    codes = mini.generate(words, seed=7).tokens[:, 0, :30]
    weights, rows = WeightReader(mini.image_model).read(), []
    for side in (0, 1):
        for both, drawn in zip(mini.encode(words), codes, strict=True):
            text = mini.image_model.embed_text(torch.tensor(both[side]))
            whole = torch.cat([text, weights.code_table[drawn]])[None].detach()
            _, states = run_whole(whole, weights.blocks, weights.rotary, [2, 4, 6])
            rows.append(states[:, 0, -1])
    return torch.stack(rows, 1).detach()


@pytest.fixture(scope="session")
def remembered_builtins():
    """Remembers the names that Triton's interpreter replaces, which it looks up anew at each call of a helper.

    They never change: with them remembered, the tests take two thirds of the time.
    """
    from tests.kernels.cases import CPU_BACKENDS

    if "triton" not in CPU_BACKENDS:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    names: dict[object, list[str]] = {}

    def patch_builtin(package, builder, *scope):
        if package not in names:
            names[package] = [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]
        for name in names[package]:
            member = getattr(package, name)
            if tl.core.is_builtin(member):
                interpreter._patch_attr(package, name, member, builder, *scope)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_builtin", patch_builtin)
        yield
