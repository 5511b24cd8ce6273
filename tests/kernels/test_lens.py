import pytest
import torch

from janus_dola.kernels.block_torch import Matrix
from janus_dola.kernels.head import head_scores
from janus_dola.kernels.lens_map import LayerLens, Lens
from tests.kernels.cases import CPU_BACKENDS, assert_accurate, dola, random_head, random_hidden


def random_lens(layers, hidden: int, rank: int, seed: int, dtype: torch.dtype = torch.float64) -> Lens:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=g, dtype=torch.float64) * hidden**-0.5).to(dtype)

    return Lens(
        {j: LayerLens(Matrix(normal(rank, hidden)), Matrix(normal(hidden, rank), normal(hidden))) for j in layers}
    )


@pytest.mark.parametrize(("rows", "hidden", "rank"), [(1, 1, 1), (3, 7, 2), (6, 48, 48), (9, 65, 16)])
def test_a_lens_maps_early_layers_and_leaves_the_final_one(rows, hidden, rank):
    states, lens = torch.randn(3, rows, hidden, dtype=torch.float64), random_lens((2, 5, 6), hidden, rank, rows)
    mapped = lens(states, (2, 6))
    assert torch.equal(mapped[2], states[2])
    for index, layer in enumerate((2, 6)):
        maps = lens.layers[layer]
        step = maps.up.weight @ (maps.down.weight @ states[index].mT) + maps.up.bias[:, None]
        assert torch.allclose(mapped[index], states[index] + step.mT, atol=1e-12)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("beta", [None, 1.0])
def test_every_backend_agrees_behind_a_lens(backend, beta):
    """Float32, and the oracle in float64 from the maps on."""
    lens, exact = (random_lens((1, 2, 4), 48, 16, 3, dtype) for dtype in (torch.float32, torch.float64))
    hidden = random_hidden(4, 3, 48, torch.float32, seed=8)
    mapped, head = lens(hidden, (1, 2, 4)), random_head(48, 32, 600, torch.float32, seed=8)
    assert torch.allclose(mapped.double(), exact(hidden.double(), (1, 2, 4)), atol=1e-5)
    params = dola(3.0, 1.0, 0.02, beta=beta)
    assert assert_accurate(head_scores(mapped, head, params, backend), mapped, head, params) > 0
