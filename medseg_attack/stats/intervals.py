"""Intervals over patients of a mean of bounded scores and of a paired change of it. No torch.

A few patients do not show what befalls one in ten. An interval that is made of them alone misses it: with 6 patients in
every second study. So each interval here allows for patients who were not measured, as far as bounded scores let them
differ. `benchmarks/coverage.py` measures how often each holds the truth.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
DRAWS = 4000
UNSEEN = 1 / 40  # the weight of patients who were not measured, in the interval of a change, per patient who was
HALF_BELOW = 6  # patients below which half a patient was not measured; no signed-rank test of so few decides anything
SHOWN_FROM = 30  # patients among whom one in ten is met with a probability of 96 %

Array = NDArray[np.float64]
Interval = tuple[float, float]


def mean_interval(sums: Array, counts: Array, bounds: Interval) -> Interval:
    """The 95 % interval of a mean of bounded scores, 2.5 % on either side (Gaffke 2005; Learned-Miller & Thomas 2020).

    One patient more, who has the worst score that there can be, joins those that were measured. All of them get random
    weights (Dirichlet 1, ..., 1); the lower bound is the 2.5 % quantile of the weighted mean. The upper bound is its
    mirror image. For scores that are 0 or 1 this is Clopper and Pearson's interval. For n patients who all have score
    x, it leaves the share of failures that n patients cannot rule out: the lower bound is x 0.025^(1/n). It needs no
    assumption about the distribution: no distribution is known for which it covers less than 95 %. It is smooth in the
    scores, since the weights depend on n alone.

    Where a bound is infinite no interval is free of assumptions. That side is Student's, from the jackknife's standard
    error.

    Args:
        sums, counts: each patient's sum of scores and how many they are, (patients, classes).
        bounds: the least and the greatest value of a score.

    Returns:
        The bounds; (NaN, NaN) with fewer than two patients.
    """
    if len(sums) < 2:
        return float("nan"), float("nan")
    low, high = (
        student_interval(sums, counts)[side]
        if np.isinf(extreme)
        else _weighted_end(sums, counts, np.array(float(extreme)), share)
        for side, (extreme, share) in enumerate(zip(bounds, (TAIL, 1 - TAIL), strict=True))
    )
    return low, high


def change_interval(sums: Array, old: Array, counts: Array, bounds: Interval) -> Interval:
    """The 95 % interval of a mean paired change, new score minus old, 2.5 % on either side.

    It is Student's at least, and wider for what so few patients do not show:

    - With fewer than `SHOWN_FROM` patients, more join them who were not measured: n / 40 patients, half a patient with
      fewer than `HALF_BELOW`. Under the reference they are like the others, under the new model their score is the
      worst that there can be, or for the upper bound the best. Weights are random as in `mean_interval` (Dirichlet
      1, ..., 1, n / 40), so that the share of those patients is 2.4 % on average, and above 10 % in few draws. A whole
      patient, free under both models, would hold for every distribution, but then no 50 patients could show a loss of
      0.05.
    - With more, one in ten is among those that were measured, and makes the changes skew: Hall's (1992) transformation
      of Student's t by their skewness widens the interval to that side.

    Args:
        sums, counts: each patient's sum of changes and how many they are, (patients, classes).
        old: each patient's sum of scores under the reference.
        bounds: the least and the greatest value of a score; an infinite one adds no patient on its side.

    Returns:
        The bounds, within what a change can be; (NaN, NaN) with fewer than two patients.
    """
    n = len(sums)
    if n < 2:
        return float("nan"), float("nan")
    ends = [student_interval(sums, counts)]
    if n < SHOWN_FROM:
        usual, weight = class_means(old.sum(0), counts.sum(0)), 0.5 if n < HALF_BELOW else UNSEEN * n
        ends.append(
            tuple(  # type: ignore[arg-type]
                end if np.isinf(extreme) else _weighted_end(sums, counts, extreme - usual, share, weight)
                for end, extreme, share in zip(ends[0], bounds, (TAIL, 1 - TAIL), strict=True)
            )
        )
    else:
        ends.append(_skewed_interval(sums, counts))
    most = bounds[1] - bounds[0]
    return max(min(low for low, _ in ends), -most), min(max(high for _, high in ends), most)


def student_interval(sums: Array, counts: Array) -> Interval:
    """Student's 95 % interval of a mean over classes, with the jackknife's standard error."""
    n, estimate = len(sums), float(class_mean(sums.sum(0), counts.sum(0)))
    from scipy import stats as scipy_stats  # takes half a second to load, and few tables need it

    half = float(scipy_stats.t.ppf(1 - TAIL, n - 1) * _pseudo_values(sums, counts).std(ddof=1) / np.sqrt(n))
    return estimate - half, estimate + half


def _skewed_interval(sums: Array, counts: Array) -> Interval:
    """The interval of Student's t after its skewness is transformed away (Hall 1992, his cubic transformation)."""
    n, values = len(sums), _pseudo_values(sums, counts)
    estimate, spread = float(class_mean(sums.sum(0), counts.sum(0))), values.std(ddof=1)
    skewness = ((values - values.mean()) ** 3).mean() / values.std() ** 3 if spread > 0 else 0.0
    from scipy import stats as scipy_stats

    t = scipy_stats.t.ppf([TAIL, 1 - TAIL], n - 1) / np.sqrt(n)
    if abs(skewness) > 1e-6:
        t = (np.cbrt(1 + skewness * (t - skewness / (6 * n))) - 1) * 3 / skewness
    high, low = estimate - t * spread
    return float(low), float(high)


def _pseudo_values(sums: Array, counts: Array) -> Array:
    """Each patient's share in the mean over classes, by leaving it out (the jackknife's pseudo-values)."""
    n, estimate = len(sums), class_mean(sums.sum(0), counts.sum(0))
    without = class_mean(sums.sum(0) - sums, counts.sum(0) - counts)
    return np.asarray(n * estimate - (n - 1) * without)


def _weighted_end(sums: Array, counts: Array, extreme: Array, share: float, weight: float = 1.0) -> float:
    """A quantile of the mean under random weights of the patients and of one more, whose scores are `extreme`."""
    n = len(sums)
    usual = counts.sum(0) / n
    weights = dirichlet(n, weight)
    total = weighted(weights, np.vstack([sums, usual * extreme]))
    return float(np.quantile(class_mean(total, weighted(weights, np.vstack([counts, usual]))), share))


@lru_cache(maxsize=4)
def dirichlet(n: int, weight: float | None = None) -> NDArray[np.float32]:
    """Random weights of n patients and of one more with `weight`, each row of sum 1; always the same for the same n.

    Shape (DRAWS, n + 1), fewer rows for very many patients; (DRAWS, n) without a weight. They are kept in float32, in
    which the weight of a patient is off by one part in ten million, and drawn in float64 a few rows at a time.
    """
    alpha = np.ones(n) if weight is None else np.append(np.ones(n), weight)
    draws = max(DRAWS // 4, min(DRAWS, 2**22 // len(alpha)))  # 16 MB
    weights, random = np.empty((draws, len(alpha)), np.float32), np.random.default_rng(0)
    for rows in _blocks(weights):
        weights[rows] = random.dirichlet(alpha, len(weights[rows]))
    return weights


def weighted(weights: NDArray[np.float32], values: Array) -> Array:
    """The weighted sums of patients' values (patients, classes), in float64: a row for each row of weights."""
    sums = np.empty((len(weights), values.shape[1]))
    for rows in _blocks(weights):
        sums[rows] = weights[rows].astype(float) @ values
    return sums


def _blocks(weights: NDArray[np.float32]) -> list[slice]:
    """Rows of at most 1 MB of float64, in order; one row at least."""
    n = max(1, 2**17 // weights.shape[1])
    return [slice(start, start + n) for start in range(0, len(weights), n)]


def class_mean(sums: Array, counts: Array) -> Array:
    """The mean over those classes that there are, of their means."""
    return np.asarray(class_means(sums, counts).sum(-1) / np.maximum((counts > 0).sum(-1), 1))


def class_means(sums: Array, counts: Array) -> Array:
    """The mean of each class; 0 of one that there is not."""
    return np.asarray(sums / np.where(counts > 0, counts, 1))
