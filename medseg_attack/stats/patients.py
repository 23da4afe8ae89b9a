"""Statistics whose unit is the patient: scores, paired tests, ranks, and what so few patients can show. No torch.

Slices and scans of a patient are alike: taken for independent they make every interval several times too narrow. So
patients are what is drawn, left out, paired and counted here.

A `cases` table has a row per case (slice, scan or patient) and class: columns `group` (the patient), `cls`, scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medseg_attack.errors import InputError, plural
from medseg_attack.stats.intervals import (
    LEVEL,
    Array,
    Interval,
    change_interval,
    class_mean,
    dirichlet,
    mean_interval,
    weighted,
)

FEW = 10  # patients below which an interval of Dice is so wide (0.3 and more) that tables warn
CASE = ["group", "unit", "cls"]  # what tells the rows of a `cases` table apart
EXACT_UP_TO = 13  # patients whose signed ranks have their exact distribution even with ties
TESTS_FROM = 6  # patients below which no two-sided signed-rank test reaches p < 0.05: 2 / 2^5 = 0.0625

UNBOUNDED = (-np.inf, np.inf)


def interval(cases: pd.DataFrame, score: str, *, bounds: Interval = (0.0, 1.0)) -> tuple[float, float]:
    """The 95 % interval over patients of a score's mean over classes.

    (NaN, NaN) with fewer than two patients.

    Args:
        bounds: the least and the greatest value that a case can have; see `mean_interval`.
    """
    return mean_interval(*_per_patient(cases, score), bounds)


def _per_patient(cases: pd.DataFrame, score: str) -> tuple[Array, Array]:
    """Sums of a score and how many there are, (patients, classes); NaN are not counted."""
    return Places.of(cases).totals(cases[score].to_numpy(float))


@dataclass(frozen=True)
class Places:
    """The places of the rows of a `cases` table in an array of (patients, classes), for several scores of them.

    Attributes:
        patient, organ: per row, the number of its patient and of its class in their sorted names.
    """

    patient: NDArray[np.intp]
    organ: NDArray[np.intp]
    shape: tuple[int, int]

    @classmethod
    def of(cls, cases: pd.DataFrame) -> "Places":
        (patient, patients), (organ, organs) = (
            pd.factorize(cases[key], sort=True, use_na_sentinel=False) for key in ("group", "cls")
        )
        return cls(patient, organ, (len(patients), len(organs)))

    @property
    def of_any_class(self) -> "Places":
        """The places, all classes taken for one."""
        return Places(self.patient, np.zeros_like(self.organ), (self.shape[0], 1))

    def part(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> "Places":
        """The places of some of the rows, such as those of one run; patients and classes without any are left out."""
        (patients, patient), (organs, organ) = (
            np.unique(each[rows], return_inverse=True) for each in (self.patient, self.organ)
        )
        return Places(patient, organ, (len(patients), len(organs)))

    def interval(self, values: Array, bounds: Interval = (0.0, 1.0)) -> Interval:
        """The 95 % interval over patients of the values' mean over classes; see `interval`."""
        return mean_interval(*self.totals(values), bounds)

    def mean(self, values: Array) -> float:
        """The mean over classes of the values' mean over cases; NaN without any."""
        sums, counts = self.totals(values)
        return float(class_mean(sums.sum(0), counts.sum(0))) if len(sums) else float("nan")

    def deviation(self, values: Array) -> float:
        """The standard deviation over patients of the values' mean over classes; see `deviation`."""
        sums, counts = self.totals(values)
        if len(sums) < 2:
            return float("nan")
        means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
        return float(np.nanmean(means, axis=1).std(ddof=1))

    def totals(self, values: Array) -> tuple[Array, Array]:
        """Sums of the values and how many there are, for patients who have any; NaN are not counted."""
        is_score, size = ~np.isnan(values), self.shape[0] * self.shape[1]
        index = self.patient[is_score] * self.shape[1] + self.organ[is_score]
        sums, counts = (
            np.bincount(index, weights, size).reshape(self.shape)
            for weights in (values[is_score], np.ones(is_score.sum()))
        )
        some = counts.sum(1) > 0
        return sums[some].astype(float), counts[some].astype(float)


def mean_score(cases: pd.DataFrame, score: str) -> float:
    """The mean over classes of a score's mean over cases; NaN without any."""
    return Places.of(cases).mean(cases[score].to_numpy(float))


def deviation(cases: pd.DataFrame, score: str) -> float:
    """The standard deviation over patients of a score's mean over classes; NaN with fewer than two patients.

    A patient's score of a class is the mean over its cases; a class that a patient has not is left out of its mean.
    """
    return Places.of(cases).deviation(cases[score].to_numpy(float))


def paired(new: pd.DataFrame, old: pd.DataFrame, score: str, *, within: Sequence[str] = ()) -> pd.DataFrame:
    """The cases of both with `difference`, new minus old, and `old`.

    Args:
        within: columns that tell several pairs of tables apart, all of which are paired at once.

    Raises:
        InputError: they are not of the same cases and classes.
    """
    keys = [*within, *CASE]
    after, before = (cases.set_index(keys)[score].sort_index() for cases in (new, old))
    _refuse_other_cases(after.index, before.index, len(within))
    return pd.DataFrame({"difference": after - before, "old": before}).reset_index()


def _refuse_other_cases(new: pd.Index, old: pd.Index, n_within: int = 0) -> None:
    if new.equals(old):
        return
    alone = new.symmetric_difference(old)
    *pair, _, unit, cls = alone[0]
    n = sum([*key[:n_within]] == pair for key in alone)
    raise InputError(
        f"expected both runs to hold the same cases, got {n} of one only, such as {unit} ({cls}); "
        "run both on the same data and split"
    )


@dataclass(frozen=True)
class Difference:
    """A difference between paired patients.

    Attributes:
        mean: mean over classes of the mean over cases.
        low, high: its 95 % interval over patients.
        p: that of the two-sided Wilcoxon signed-rank test on patient means.
        n: number of patients.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int


def difference(
    cases: pd.DataFrame, column: str = "difference", *, beyond: float = 0.0, bounds: Interval = UNBOUNDED
) -> Difference:
    """The mean of a column with its interval, and the test of it being `beyond`.

    Args:
        bounds: the least and the greatest value of the column; see `mean_interval`. Without bounds, as by default, the
            interval is Student's: it takes for granted that no unseen patient differs by far more than those that were
            measured. `change` takes the bounds of a score into account.
    """
    sums, counts = _per_patient(cases, column)
    return _difference(sums, counts, mean_interval(sums, counts, bounds), beyond)


def change(pairs: pd.DataFrame, *, beyond: float = 0.0, bounds: Interval = (0.0, 1.0)) -> Difference:
    """The mean of a paired difference with its interval, and the test of it being `beyond`.

    Args:
        pairs: of `paired`.
        bounds: the least and the greatest value of the score of which it is a difference; see `change_interval`.
    """
    values, old = (pairs[key].to_numpy(float) for key in ("difference", "old"))
    return _change(Places.of(pairs), values, old, beyond, bounds)


def _change(places: Places, values: Array, old: Array, beyond: float, bounds: Interval) -> Difference:
    sums, counts = places.totals(values)
    before, _ = places.totals(np.where(np.isnan(values), np.nan, old))
    return _difference(sums, counts, change_interval(sums, before, counts, bounds), beyond)


def _difference(sums: Array, counts: Array, interval: Interval, beyond: float) -> Difference:
    mean = float(class_mean(sums.sum(0), counts.sum(0))) if len(sums) else float("nan")
    return Difference(mean, *interval, signed_rank(class_mean(sums, counts) - beyond), len(sums))


def signed_rank(values: Array) -> float:
    """p of the two-sided Wilcoxon signed-rank test of values being around 0; zeros rank (Pratt). NaN without values.

    >>> signed_rank(np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06]))
    0.03125
    """
    if not len(values):
        return float("nan")
    rounded = np.round(values, 12)  # what floats add to equal differences is no rank
    if not rounded.any():
        return 1.0
    if len(rounded) <= EXACT_UP_TO:
        return _exact_signed_rank(rounded)
    from scipy import stats as scipy_stats

    return float(scipy_stats.wilcoxon(rounded, zero_method="pratt").pvalue)


def _exact_signed_rank(values: Array) -> float:
    """p from the distribution of the positive ranks' sum over all signs, with ties and zeros; some are not zero."""
    from scipy import stats as scipy_stats

    doubled = (2 * scipy_stats.rankdata(np.abs(values))).astype(int)  # whole numbers where ranks of ties are halves
    ways = np.ones(1)  # of signs that give each sum
    for rank in doubled[values != 0]:
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    total = doubled[values > 0].sum()
    return float(min(1.0, 2 * min(ways[: total + 1].sum(), ways[total:].sum()) / ways.sum()))


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for how many there are (Holm 1979); those that are NaN are not counted.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = pd.Series(p, dtype=float)
    ordered = values.dropna().sort_values(kind="stable")
    adjusted = (ordered * np.arange(len(ordered), 0, -1)).clip(upper=1).cummax()
    return list(adjusted.reindex(values.index))


def pairwise(models: dict[str, pd.DataFrame], score: str, *, bounds: Interval = UNBOUNDED) -> pd.DataFrame:
    """Every two models' difference on the same cases, Holm's correction over all of them.

    Columns: new, old, mean (new minus old), low, high, p, p_holm, n.

    Args:
        bounds: the least and the greatest value of the score; see `change_interval`.
    """
    first, *others = models
    scores = {first: models[first].set_index(CASE)[score].sort_index()}
    for name in others:
        scores[name] = models[name].set_index(CASE)[score].sort_index()
        _refuse_other_cases(scores[name].index, scores[first].index)
    places = Places.of(scores[first].reset_index())
    values = {name: column.to_numpy(float) for name, column in scores.items()}
    table = [
        {"new": new, "old": old} | vars(_change(places, values[new] - values[old], values[old], 0.0, bounds))
        for old, new in combinations(models, 2)
    ]
    frame = pd.DataFrame(table, columns=["new", "old", "mean", "low", "high", "p", "n"])
    return frame.assign(p_holm=holm(frame["p"].tolist()))


def rank_stability(
    models: dict[str, pd.DataFrame], score: str, *, lower_is_better: bool = False, bounds: Interval = UNBOUNDED
) -> pd.DataFrame:
    """Shares of random weights of patients with which each model (row) has each rank (column, from 1 = best).

    The weights are those of the Bayesian bootstrap (Rubin 1981), the same for all models; equal models share the better
    rank. `seen` is the rank on all patients, each of the same weight. `best` and `worst` are the ends of its 95 %
    range: as many models are ahead, or behind, as `change_interval` says for sure.

    Args:
        bounds: the least and the greatest value of the score; see `change_interval`.

    Raises:
        InputError: the models do not have the same patients, or cases.
    """
    from scipy import stats as scipy_stats

    tables = [_per_patient(cases, score) for cases in models.values()]
    n = len(tables[0][0])
    if {frozenset(cases["group"]) for cases in models.values()} != {frozenset(next(iter(models.values()))["group"])}:
        raise InputError("expected all models to have the same patients, got others; run them on the same data")
    weights = dirichlet(n)
    sign = 1 if lower_is_better else -1
    means = [class_mean(weighted(weights, sums), weighted(weights, counts)) for sums, counts in tables]
    scores = sign * np.stack(means, axis=1)
    on_all = np.array([sign * float(class_mean(sums.sum(0), counts.sum(0))) for sums, counts in tables])
    rank: Callable[[Array], Array] = lambda x: scipy_stats.rankdata(np.round(x, 12), method="min", axis=-1)  # noqa: E731
    ranks = rank(scores)
    shares = {place: (ranks == place).mean(0) for place in range(1, len(models) + 1)}
    table = pd.DataFrame(shares, index=list(models)).assign(seen=rank(on_all).astype(int))
    pairs = pairwise(models, score, bounds=bounds)
    sure = pairs[(pairs["low"] > 0) | (pairs["high"] < 0)]
    first = (sure["low"] > 0) != lower_is_better  # whether the new one of the pair is ahead
    ahead, behind = (sure["new"].where(side, sure["old"]).value_counts() for side in (first, ~first))
    return table.assign(
        best=[1 + int(behind.get(name, 0)) for name in models],
        worst=[len(models) - int(ahead.get(name, 0)) for name in models],
    )


def warning(n: int, comparisons: int = 1) -> str:
    """A sentence on what `n` patients cannot show; empty where there is nothing to warn of."""
    if n < 2:
        return f"{n} patient: a number of this patient, of no others; no interval, no test."
    limits = []
    if n < FEW:
        limits.append(f"{n} patients are few: they cannot rule out that {_unseen(n)} of all patients fail outright")
    if powerless := without_power(n, comparisons):
        limits.append(powerless)
    return "; ".join(limits) + "." if limits else ""


def without_power(n: int, comparisons: int = 1) -> str:
    """That no signed-rank test of `n` patients can be significant, in words; empty where one can.

    >>> without_power(4), without_power(9)
    ('no signed-rank test of 4 patients can reach p < 0.05 (least possible 0.12)', '')
    """
    least = 2.0 ** (1 - n) * comparisons
    if least < 1 - LEVEL:
        return ""
    others = f" and {comparisons} comparisons" if comparisons > 1 else ""
    limit = f"can reach p < 0.05 (least possible {min(1.0, least):.2g})"
    return f"no signed-rank test of {plural(n, 'patient')}{others} {limit}"


def _unseen(n: int) -> str:
    """The share of failures that `n` patients without one leave possible (Clopper-Pearson, 97.5 %), as text.

    >>> _unseen(6)
    '46 %'
    """
    return f"{100 * (1 - ((1 - LEVEL) / 2) ** (1 / n)):.0f} %"
