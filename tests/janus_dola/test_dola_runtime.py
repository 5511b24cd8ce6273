"""The names of the original integration do real work."""

import math

import pytest
import torch

from janus_dola.dola_runtime import (
    compute_logprobs_from_hidden,
    contrast_with_apc_from_logprobs,
    jsd_from_logprobs,
    sanitize_candidate_layers,
    select_layer_by_jsd,
)
from janus_dola.generation_inference import generate, generate_with_dola
from janus_dola.kernels import head_torch
from janus_dola.kernels.types import SamplingTensors
from janus_dola.settings import DrawSettings


def test_the_functions_compose_to_what_the_engine_computes(mini, mini_hidden_states):
    model = mini.model.model
    norm, head = model.language_model.norm, model.generation_head
    conditional = mini_hidden_states[:, :4]
    each = SamplingTensors.repeat(DrawSettings(cfg_weight=1.0).sampling_params(()), 4, conditional)
    actual = head_torch.head_scores(conditional, mini.image_model.head, each)
    with torch.no_grad():
        q = [compute_logprobs_from_hidden(h, norm, head) for h in conditional]
    layers = select_layer_by_jsd(q[3], dict(enumerate(q[:3])))
    assert torch.equal(layers, actual.layer)
    for image in range(4):
        q_n, candidates = q[3][image], {layer: q[layer][image] for layer in range(3)}
        layer = select_layer_by_jsd(q_n, candidates)
        assert layer == actual.layer[image]
        assert jsd_from_logprobs(q_n, candidates[layer]).item() == pytest.approx(actual.jsd[image].item(), abs=1e-5)
        p_hat = contrast_with_apc_from_logprobs(q_n, candidates[layer], 0.1)
        assert torch.allclose(p_hat, actual.scores[image].softmax(-1), atol=1e-4)


def test_small_numbers_by_hand():
    q_n = torch.tensor([0.5, 0.4, 0.1]).log()
    q_m = torch.tensor([0.25, 0.5, 0.25]).log()
    assert contrast_with_apc_from_logprobs(q_n, q_m, 0.5).tolist() == pytest.approx([2 / 2.8, 0.8 / 2.8, 0])
    assert jsd_from_logprobs(q_n, q_n) == 0
    assert jsd_from_logprobs(q_n, q_m) < math.log(2)
    assert select_layer_by_jsd(q_n, {24: q_m, 22: q_m, 26: q_n}) == 22
    assert sanitize_candidate_layers([22, 24], 30) == [22, 24]


def test_bad_values():
    q = torch.zeros(1)
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got 2"):
        contrast_with_apc_from_logprobs(q, q, 2)
    with pytest.raises(ValueError, match="candidates must hold at least one layer"):
        select_layer_by_jsd(q, {})


def test_generate_and_generate_with_dola(mini, tmp_path):
    torch.manual_seed(1)
    plain = generate(mini.model, mini.tokenizer, "a red circle", parallel_size=2, outdir=tmp_path / "a")
    torch.manual_seed(1)
    expected = mini.generate("a red circle", 2, dola=None, sampler="multinomial", seed=None)
    assert torch.equal(plain.tokens, expected.tokens)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["img_0.jpg", "img_1.jpg"]

    class Processor:
        tokenizer = mini.tokenizer

    torch.manual_seed(1)
    formatted = "<|User|>: a red circle\n\n<|Assistant|>:<begin_of_image>"  # as upstream's script passes it
    again = generate(mini.model, Processor(), formatted, parallel_size=2, outdir=tmp_path / "b")
    assert torch.equal(again.tokens, expected.tokens)
    dola = generate_with_dola(
        mini.model, Processor(), formatted, parallel_size=1, outdir=tmp_path / "c", alpha=0.2, candidate_layers=[2, 4]
    )
    assert set(dola.premature_layers.unique().tolist()) <= {2, 4}
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_generate_takes_the_image_sizes_of_the_original_script(mini, tmp_path, monkeypatch):
    drawn = generate(mini.model, mini.tokenizer, "a red circle", 1, 1, 5, 64, 64, 8, tmp_path / "a")
    assert drawn.tokens.shape == (1, 1, 64)
    generate_with_dola(mini.model, mini.tokenizer, "x", 1, 1, 5, 64, None, 8, outdir=tmp_path / "b")
    assert (tmp_path / "b" / "img_0.jpg").exists()
    monkeypatch.setattr(type(mini), "generate", lambda *a, **k: pytest.fail("something was drawn"))
    for function in (generate, generate_with_dola):
        for sizes, message in (
            ([576], "image_token_num_per_image must be None or that of this model, 64, got 576"),
            (["out"], "image_token_num_per_image must be None or that of this model, 64, got 'out'"),
            ([64, 384], "img_size must be None or that of this model, 64, got 384"),
            ([64, 64, 16], "patch_size must be None or that of this model, 8, got 16"),
            ([64, 64, 8, 5], "outdir must be a path, got 5"),
        ):
            with pytest.raises(ValueError, match=message):
                function(mini.model, mini.tokenizer, "x", 1, 1, 5, *sizes)
