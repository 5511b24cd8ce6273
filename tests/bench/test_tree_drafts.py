"""Trees of guesses draw the same images, and one that is a chain takes the passes of the engine."""

import pytest

from bench.experiments import tree_drafts
from bench.experiments.tree_drafts import Tree
from bench.speed import passes
from janus_dola import DoLaConfig
from janus_dola.settings import DrawSettings

PROMPTS = passes.captions(2)


@pytest.mark.parametrize("dola", [None, DoLaConfig()], ids=["baseline", "DoLa"])
def test_a_chain_takes_the_passes_of_the_engine(mini, dola):
    found = tree_drafts.measured(mini, PROMPTS, DrawSettings(dola=dola), Tree(8))
    expected = passes.passes(mini, PROMPTS, dola, window=8)
    assert found["codes_a_pass"] == pytest.approx(expected["codes_a_pass"])
    assert found["passes_deviation"] == pytest.approx(expected["deviation"])
    assert 0 < found["first_right"] < 1
    assert found["branch_right"] == 0


def test_branches_save_passes_and_change_no_code(mini):
    chain, tree = (tree_drafts.measured(mini, PROMPTS, DrawSettings(), each) for each in (Tree(2), Tree(2, 4, 3)))
    assert chain["branch_right"] == 0 < tree["branch_right"]
    assert chain["codes_a_pass"] < tree["codes_a_pass"]
    assert Tree(2, 4, 3).rows == 14
