"""The arithmetic of certificates against numbers that can be worked out by hand, and against simulation."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from medseg_attack.certificates.bounds import fewest_draws, lower_mean, percentile_ranks, shifted, votes_needed


@pytest.mark.parametrize(("ratio", "ranks"), [(0.25, (351, 650)), (0.5, (261, 740)), (0.6745, (206, 795))])
def test_ranks_of_a_median_s_interval(ratio: float, ranks: tuple[int, int]) -> None:
    assert percentile_ranks(1000, ratio, 1e-3) == ranks


def test_too_few_draws_have_no_rank() -> None:
    low, high = percentile_ranks(20, 2.0, 1e-3)
    assert low < 1
    assert high > 20


@pytest.mark.parametrize(("tau", "draws"), [(0.75, 63), (0.85, 111), (0.9, 171), (0.95, 351), (0.99, 1791)])
def test_the_fewest_draws_that_certify_a_pixel_of_65536(tau: float, draws: int) -> None:
    assert fewest_draws(65536, norm.ppf(tau), 1e-3) == draws
    assert fewest_draws(65536, 100.0, 1e-3) > 10**100


@pytest.mark.parametrize(("n", "tau", "votes"), [(100, 0.75, 97), (300, 0.75, 265), (1000, 0.95, 984)])
def test_the_fewest_votes_for_one_pixel_of_65536(n: int, tau: float, votes: int) -> None:
    """All others have none, so that the first step of Holm's is Bonferroni's."""
    histogram = np.zeros(n + 1, dtype=np.int64)
    histogram[0] = 65535
    for at in range(votes, n + 1):
        assert votes_needed(_with(histogram, at), tau, 1e-3) == at
    assert votes_needed(_with(histogram, votes - 1), tau, 1e-3) == n + 1


def test_a_single_vote_of_two_may_do() -> None:
    """It has the p-value 1 - (1 - 1 / 2)^2 = 3 / 4; no vote at all has 1."""
    assert votes_needed(np.array([0, 1, 0]), 0.5, 0.8) == 1
    assert votes_needed(np.array([0, 1, 0]), 0.5, 0.7) == 3
    p_values = binom.sf(np.arange(3) - 1, 2, 0.5)
    assert votes_needed(np.array([0, 1, 0]), 0.5, p_values[1]) == 1  # a p-value of alpha itself rejects
    assert votes_needed(np.array([1, 1, 0]), 0.5, 0.8) == 3


def _with(histogram: np.ndarray, votes: int) -> np.ndarray:
    result = histogram.copy()
    result[votes] = 1
    return result


def test_what_is_rejected_makes_the_next_one_easier() -> None:
    """Of two hypotheses the second needs alpha, not alpha / 2; behind 100 that are not rejected it is none."""
    n, tau, alpha = 20, 0.5, 0.025
    histogram = np.zeros(n + 1, dtype=np.int64)
    histogram[[20, 15]] = 1  # P(Bin(20, 1/2) >= 15) = 0.0207
    assert votes_needed(histogram, tau, alpha) == 15
    histogram[16] = 100  # P(>= 16) = 0.0059 > alpha / 101
    assert votes_needed(histogram, tau, alpha) == 20


def test_an_expectation_moves_along_the_normal_distribution() -> None:
    assert shifted(0.85, 0.674) == pytest.approx(0.641, abs=1e-3)
    assert shifted(0.826, 0.5) == pytest.approx(0.670, abs=1e-3)
    assert shifted(0.3, 0.0) == pytest.approx(0.3)
    assert shifted(1.0, 5.0) == 1.0
    assert shifted(0.0, 0.5) == 0.0


def test_a_half_space_reaches_the_bound() -> None:
    """The score is 1 where w x + n < t: moved by r along w, its expectation is the bound, to the last digits."""
    for threshold in (-0.5, 0.2, 1.0):
        for ratio in (0.1, 1.0, 2.0):
            assert shifted(norm.cdf(threshold), ratio) == pytest.approx(norm.cdf(threshold - ratio), rel=1e-12)


def test_bernstein_s_bound() -> None:
    values = np.array([0.75, 0.85] * 500)
    assert values.mean() - lower_mean(values, 1e-3) == pytest.approx(0.024, abs=5e-4)
    assert values[:200].mean() - lower_mean(values[:200], 1e-3) == pytest.approx(0.103, abs=1e-3)
    assert lower_mean(np.zeros(100), 1e-3) == 0.0


def test_the_bound_of_a_mean_is_missed_seldom() -> None:
    rng = np.random.default_rng(0)
    for a, b in ((0.5, 0.5), (8, 2), (30, 1)):
        missed = sum(lower_mean(rng.beta(a, b, 100), 0.05) > a / (a + b) for _ in range(1000))
        assert missed <= 50


def test_the_ranks_hold_the_quantiles_of_a_moved_normal() -> None:
    """A volume that is linear in the image: its median moves by r ||w||, no further than the interval's ends."""
    rng, ratio = np.random.default_rng(0), 0.5
    low, high = percentile_ranks(300, ratio, 0.05)
    draws = np.sort(rng.normal(size=(1000, 300)), 1)
    outside = (draws[:, low - 1] > -ratio) | (draws[:, high - 1] < ratio)
    assert outside.mean() <= 0.05
    assert np.median(draws[:, low - 1]) == pytest.approx(-ratio, abs=0.2)
