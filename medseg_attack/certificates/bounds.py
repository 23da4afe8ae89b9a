"""The arithmetic of certificates by random smoothing: what a number of noisy answers shows. No torch."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm


def lower_mean(values: NDArray[np.float64], alpha: float) -> float:
    """A lower bound of the expectation of values in [0, 1] that holds with probability 1 - alpha, and is 0 at least.

    Empirical Bernstein (Maurer & Pontil 2009, theorem 4): it is tight where the values vary little.
    """
    spread = math.sqrt(2 * float(np.var(values, ddof=1)) * math.log(2 / alpha) / len(values))
    return max(0.0, float(values.mean()) - spread - mean_slack(len(values), alpha))


def mean_slack(n: int, alpha: float) -> float:
    """How far `lower_mean` is below the mean of n values that are all equal."""
    return 7 * math.log(2 / alpha) / (3 * (n - 1))


def shifted(probability: float, ratio: float) -> float:
    """The least that an expectation of a score in [0, 1] under Gaussian noise can become.

    `Phi(Phi^-1(p) - r / sigma)` (Salman et al. 2019, lemma 2). A half-space reaches it.

    Args:
        probability: the expectation around the image.
        ratio: L2 radius of the change over the standard deviation of the noise.
    """
    return float(norm.cdf(norm.ppf(probability) - ratio))


def percentile_ranks(n: int, ratio: float, alpha: float) -> tuple[int, int]:
    """Ranks, from 1, of the two order statistics of n draws between which the smoothed median stays.

    For changes of L2 radius r the median lies between the quantiles `Phi(-r / sigma)` and `Phi(r / sigma)` (Chiang et
    al. 2020); the ranks bound those quantiles, each with probability 1 - alpha / 2. (0, n + 1) where n draws are too
    few.

    >>> percentile_ranks(1000, 0.5, 1e-3)
    (261, 740)
    """
    low = int(binom.ppf(alpha / 2, n, norm.cdf(-ratio)))  # P(below) <= alpha / 2 for the rank after it at most
    while low > 0 and binom.cdf(low - 1, n, norm.cdf(-ratio)) > alpha / 2:
        low -= 1
    return low, n + 1 - low


def votes_needed(histogram: NDArray[np.int64], tau: float, alpha: float) -> int:
    """The fewest agreeing votes that certify a hypothesis, by Holm's step-down test over all of them.

    Each hypothesis is that its answer has probability `tau` at most. With probability 1 - alpha no rejected one holds.

    Args:
        histogram: how many hypotheses have 0, 1, ..., n votes.

    Returns:
        More than n where none is certified.

    >>> votes_needed(np.bincount([100] * 65536, minlength=101), 0.75, 1e-3)
    100
    """
    n, left = len(histogram) - 1, int(histogram.sum())
    needed = n + 1
    p_values = binom.sf(np.arange(n + 1) - 1, n, tau)
    for votes in range(n, 0, -1):  # of none at all the p-value is 1
        if not histogram[votes]:
            continue
        if p_values[votes] > alpha / left:
            break
        needed, left = votes, left - int(histogram[votes])
    return needed


def fewest_draws(hypotheses: int, ratio: float, alpha: float) -> int:
    """The fewest draws of which unanimous ones certify anything among so many hypotheses.

    Args:
        ratio: L2 radius over the standard deviation of the noise; tau is `Phi(ratio)`.
    """
    return math.ceil(math.log(alpha / hypotheses) / min(float(norm.logcdf(ratio)), -1e-300))
