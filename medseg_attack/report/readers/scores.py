"""Readers who say which of two pictures is altered: how often they are right, and what that shows. No torch in here."""

import math
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd

ALL = "all"  # the readers together
VISIBLE_FROM = 0.6  # share of right answers below which a change is called not visible
GUESSED = 0.5
DRAWS, LEVEL = 2000, 0.95

Verdict: TypeAlias = Literal["seen", "not visible", "undecided"]


def d_prime(share: float) -> float:
    """Sensitivity d' of a reader who picks the altered one of two pictures: sqrt(2) times the normal quantile.

    >>> [round(d_prime(share), 3) for share in (0.5, 0.6, 0.75, 0.9)]
    [0.0, 0.358, 0.954, 1.812]
    """
    from scipy.special import ndtri

    return math.sqrt(2) * float(ndtri(share))


def readings(answers: pd.DataFrame) -> pd.DataFrame:
    """One row per kind of trial and reader, and one for all readers together if there are several.

    Args:
        answers: a row per reader and trial, with reader, kind, patient and correct (0 or 1).

    Returns:
        trials, correct: their numbers. share: of right answers; of all readers the mean over readers.
        low, high: its 95 % interval, Clopper-Pearson; of all readers that or one of a bootstrap of readers and
        patients, whichever reaches further.
        d_prime, d_low, d_high: the same as sensitivity d'.
        p: of so many right answers or more from a guesser (one-sided); of all readers the larger one of both sources.
        upper: one-sided 95 % upper bound of the share; of all readers the larger one.
        verdict: seen (p < 0.05), not visible (upper < 0.6) or undecided.
    """
    result = []
    for kind, of_kind in answers.groupby("kind", sort=False):
        for reader, of_reader in of_kind.groupby("reader", sort=False):
            result.append({"kind": kind, "reader": reader} | _exact(of_reader["correct"].to_numpy(int)))
        if of_kind["reader"].nunique() > 1:
            result.append({"kind": kind, "reader": ALL} | _together(of_kind))
    table = pd.DataFrame(result)
    for name, share in (("d_prime", "share"), ("d_low", "low"), ("d_high", "high")):
        table[name] = table[share].map(d_prime)
    return table.assign(verdict=[_verdict(p, upper) for p, upper in zip(table["p"], table["upper"], strict=True)])


def _exact(correct: np.ndarray) -> dict[str, float]:
    """Share of right answers with its exact binomial interval, bound and test."""
    from scipy.stats import binomtest

    n, hits = len(correct), int(correct.sum())
    test = binomtest(hits, n, alternative="greater")
    both = binomtest(hits, n).proportion_ci(LEVEL, method="exact")
    upper = binomtest(hits, n, alternative="less").proportion_ci(LEVEL, method="exact").high
    facts = {"trials": n, "correct": hits, "share": hits / n, "low": both.low, "high": both.high}
    return facts | {"p": float(test.pvalue), "upper": float(upper)}


def _together(answers: pd.DataFrame) -> dict[str, float]:
    """The mean share over readers; interval, bound and test from a bootstrap of readers and patients (MRMC).

    Few answers that are all right have no spread to draw from: nothing is narrower than what is exact for answers that
    depend on each other in no way.
    """
    exact = _exact(answers["correct"].to_numpy(int))
    hits = answers.pivot_table(index="reader", columns="patient", values="correct", aggfunc="sum", fill_value=0)
    trials = answers.pivot_table(index="reader", columns="patient", values="correct", aggfunc="count", fill_value=0)
    rng = np.random.default_rng(0)
    n_readers, n_patients = hits.shape
    readers = rng.multinomial(n_readers, np.full(n_readers, 1 / n_readers), DRAWS)
    patients = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), DRAWS)
    drawn_hits, drawn_trials = (patients @ table.to_numpy(float).T for table in (hits, trials))
    shares = drawn_hits / np.where(drawn_trials > 0, drawn_trials, np.nan)
    weights = readers * ~np.isnan(shares)
    means = np.nansum(shares * weights, axis=1) / weights.sum(axis=1)
    tail = 100 * (1 - LEVEL)
    low, high, upper = map(float, np.percentile(means, (tail / 2, 100 - tail / 2, 100 - tail)))
    share = float((hits.sum(axis=1) / trials.sum(axis=1)).mean())
    p = (1 + int((means <= GUESSED).sum())) / (DRAWS + 1)
    ends = {"low": min(low, exact["low"]), "high": max(high, exact["high"]), "upper": max(upper, exact["upper"])}
    return exact | {"share": share, "p": max(p, exact["p"])} | ends


def _verdict(p: float, upper: float) -> Verdict:
    if p < 1 - LEVEL:
        return "seen"
    return "not visible" if upper < VISIBLE_FROM else "undecided"
