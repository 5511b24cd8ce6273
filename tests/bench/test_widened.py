"""A model of a real size draws what the mini model draws, with no weight that makes a product cheaper."""

import pytest
import torch

from bench.speed import floor
from bench.speed.widened import config_of, layer_of, random_model, widened
from janus_dola import DoLaConfig

PROMPTS = ["a large red circle on white", "a blue cross"]
BLOCKS = 11


@pytest.fixture(scope="module")
def wide():
    """Twice the heads' size, two heads more, three blocks more, and codes, units and dimensions that are no multiple."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(floor.BLOCKS, "1B", floor.BlockShape("1B", hidden=512, number=BLOCKS, heads=8, inner=700))
        patch.setitem(floor.SHAPES, "1B", floor.HeadShape(512, 512, 700))
        yield {dtype: widened("1B", dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}


@pytest.mark.parametrize("window", [1, 8])
def test_a_widened_model_draws_the_same_codes(mini, wide, window):
    pipe = wide[torch.float32]
    for own, wider in ((None, None), (DoLaConfig([2, 4, 6]), DoLaConfig([layer_of(j, BLOCKS) for j in (2, 4, 6)]))):
        expected = mini.generate(PROMPTS, seed=3, window=window, dola=own)
        drawn = pipe.generate(PROMPTS, seed=3, window=window, dola=wider)
        assert torch.equal(drawn.tokens, expected.tokens)
        assert torch.equal(drawn.passes, expected.passes)
        torch.testing.assert_close(drawn.jsd, expected.jsd, atol=1e-4, rtol=0)
        assert all(torch.equal(a, b) for a, b in zip(pixels(drawn), pixels(expected), strict=True))


def test_a_model_is_made_in_its_dtype_at_once(mini):
    """7 billion weights in float32 take 28 GB for a moment."""
    sizes = floor.BlockShape("1B", hidden=64, number=2, heads=2, inner=96)
    model = random_model(config_of(mini.model.config, sizes, 700, sizes.number, 8), torch.bfloat16)
    assert {weight.dtype for weight in model.model.language_model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def pixels(drawn):
    return [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in drawn.images[0]]


def test_no_weight_of_a_widened_model_is_left_out_of_a_product(wide):
    for dtype, pipe in wide.items():
        model = pipe.image_model
        modules = [each for part in (model.blocks, *model.image_head) for each in part.modules()]
        for linear in (each for each in modules if isinstance(each, torch.nn.Linear)):
            assert (linear.weight == 0).float().mean() < 1e-4, dtype
            assert linear.weight.dtype == dtype
