"""The baseline draws token for token what transformers' own `generate(generation_mode="image")` draws."""

import pytest
import torch

PROMPTS = [
    "a large red circle on white",
    "a blue square",
    "a small purple cross on a black background, please, and nothing else",
    "a yellow triangle on grey",
]


def upstream(mini, prompts, images, **settings):
    """transformers' generate on the same prompts, padded on the left: [P * images, T]."""
    ids = [mini.encode(prompt)[0].conditional for prompt in prompts]
    longest = max(map(len, ids))
    padded = torch.tensor([[mini.tokenizer.pad_token_id] * (longest - len(row)) + row for row in ids])
    attended = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    return mini.model.generate(
        input_ids=padded,
        attention_mask=attended,
        generation_mode="image",
        guidance_scale=5.0,
        num_return_sequences=images,
        **settings,
    )


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one prompt", "several prompts"])
def test_greedy(mini, prompts):
    expected = upstream(mini, prompts, 1, do_sample=False)
    codes = mini.generate(prompts, dola=None, temperature=0.0).tokens
    assert torch.equal(codes.flatten(0, 1), expected)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one prompt", "several prompts"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_multinomial_from_the_global_generator(mini, prompts, temperature):
    torch.manual_seed(123)
    expected = upstream(mini, prompts, 2, do_sample=True, top_k=0, temperature=temperature)
    torch.manual_seed(123)
    codes = mini.generate(prompts, 2, dola=None, temperature=temperature, seed=None, sampler="multinomial").tokens
    assert torch.equal(codes.flatten(0, 1), expected)
    assert len(codes.unique()) > 5


def test_multinomial_with_a_seed_leaves_the_global_generator_alone(mini):
    torch.manual_seed(9)
    state = torch.get_rng_state()
    first = mini.generate(PROMPTS[0], 2, sampler="multinomial", seed=4).tokens
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(mini.generate(PROMPTS[0], 2, sampler="multinomial", seed=4).tokens, first)
    assert mini.generate(PROMPTS[0], 2, sampler="multinomial", seed=None).seeds.tolist() == [[-1, -1]]
