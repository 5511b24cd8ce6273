import pytest
import torch
from scipy import stats

from janus_dola.kernels.philox import HIGHEST_NOISE, LOWEST_NOISE, gumbel_noise, philox_4x32_10, random_words

# The known answers of the authors' Random123 distribution for philox4x32-10: counter, key, output.
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return tuple(torch.tensor([int(word, 16)]) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "output"), VECTORS)
def test_published_test_vectors(counter, key, output):
    actual = philox_4x32_10(words(counter), words(key))
    assert [f"{int(word):08x}" for word in actual] == output.split()


def test_words_are_keyed_by_seed_position_and_code():
    seed, position, code = 0x0123456789ABCDEF, 577, 1234
    key = (torch.tensor([seed & 0xFFFFFFFF]), torch.tensor([seed >> 32]))
    counter = tuple(torch.tensor([word]) for word in (code // 4, position, 0, 0))
    expected = philox_4x32_10(counter, key)[code % 4]
    assert random_words(torch.tensor([seed]), position, 2000)[0, code] == expected[0]


def test_noise_does_not_depend_on_the_batch_nor_on_the_number_of_codes():
    seeds = torch.tensor([3, 2**40 + 3, 2**63 - 1, 0])
    together = gumbel_noise(seeds, 5, 1001)
    for i, seed in enumerate(seeds):
        assert torch.equal(gumbel_noise(seed[None], torch.tensor([5]), 999)[0], together[i, :999])
    of_four_positions = gumbel_noise(seeds, torch.tensor([5, 0, 9, 5]), 1001)
    assert torch.equal(of_four_positions[[0, 3]], together[[0, 3]])
    assert torch.equal(of_four_positions[1], gumbel_noise(seeds[1:2], 0, 1001)[0])
    assert len(together.unique(dim=0)) == 4


@pytest.mark.parametrize("codes", [16, 1001])
def test_noise_of_the_codes_that_need_it_is_that_of_all(codes):
    seeds, position = torch.tensor([3, 2**63 - 1, 0]), torch.tensor([5, 0, 9])
    needed = torch.rand(3, codes) < 0.1
    every, some = (gumbel_noise(seeds, position, codes, which) for which in (None, needed))
    assert torch.equal(some[needed], every[needed])
    assert torch.equal(gumbel_noise(seeds, 5, codes, needed)[needed], gumbel_noise(seeds, 5, codes)[needed])


def test_noise_is_standard_gumbel():
    noise = gumbel_noise(torch.arange(20), 9, 5000).flatten().double().numpy()
    assert stats.kstest(noise, stats.gumbel_r.cdf).pvalue > 1e-3


def test_noise_is_finite_for_the_extreme_words(monkeypatch):
    extremes = torch.tensor([[0, 1, 2**31, 2**32 - 2, 2**32 - 1]])
    monkeypatch.setattr("janus_dola.kernels.philox.random_words", lambda *args: extremes)
    noise = gumbel_noise(torch.tensor([0]), 0, 5)[0]
    assert noise.isfinite().all()
    assert noise.tolist() == sorted(noise.tolist(), reverse=True)
    assert 22 < noise[0] < HIGHEST_NOISE  # -log(2^-33): as far as 32 bits reach
    assert noise[-1] > LOWEST_NOISE
