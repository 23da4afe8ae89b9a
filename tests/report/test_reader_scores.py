"""Scores of readers: numbers that statistics books print, the coverage of intervals, and readers who are alike."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from medseg_attack.report.readers.scores import ALL, d_prime, readings


def answers(correct: list[int], reader: str = "a", patients: int = 5, kind: str = "attack") -> pd.DataFrame:
    numbers = [1 + n % patients for n in range(len(correct))]
    return pd.DataFrame({"reader": reader, "kind": kind, "patient": numbers, "correct": correct})


def reading(hits: int, n: int) -> dict[str, float]:
    (row,) = readings(answers([1] * hits + [0] * (n - hits))).to_dict("records")
    return {str(name): value for name, value in row.items()}


@pytest.mark.parametrize(("share", "expected"), [(0.5, 0), (0.6, 0.358), (0.75, 0.954), (0.9, 1.812)])
def test_d_prime_is_that_of_the_table(share: float, expected: float) -> None:
    assert d_prime(share) == pytest.approx(expected, abs=5e-4)
    assert d_prime(1 - share) == pytest.approx(-d_prime(share))


@pytest.mark.parametrize(("hits", "n"), [(15, 20), (32, 50), (59, 100), (113, 200)])
def test_the_least_number_that_beats_a_guesser_is_seen_and_one_less_is_not(hits: int, n: int) -> None:
    assert reading(hits, n)["verdict"] == "seen"
    assert reading(hits - 1, n)["verdict"] != "seen"


@pytest.mark.parametrize(("hits", "n", "bound"), [(35, 70, 0.604), (50, 100, 0.586)])
def test_not_visible_needs_a_bound_below_six_tenths(hits: int, n: int, bound: float) -> None:
    row = reading(hits, n)
    assert row["upper"] == pytest.approx(bound, abs=5e-4)
    assert row["verdict"] == ("not visible" if bound < 0.6 else "undecided")


def test_the_interval_of_a_guesser_covers_one_half() -> None:
    """Exactly, over all numbers of right answers that a guesser can have: 95 to 97 % of the probability."""
    n = 80  # the attacked pairs of a study of usual size
    covered = [row["low"] <= 0.5 <= row["high"] for row in (reading(hits, n) for hits in range(n + 1))]
    share = binom.pmf(np.arange(n + 1), n, 0.5)[covered].sum()
    assert 0.95 <= share <= 0.97


def test_all_readers_are_never_surer_than_independent_answers() -> None:
    one = [1, 0] * 20
    table = readings(pd.concat([answers(one, "a"), answers(one, "b")])).set_index("reader")
    pooled = reading(40, 80)
    assert table.loc[ALL, "share"] == 0.5
    assert table.loc[ALL, "low"] <= pooled["low"]
    assert table.loc[ALL, "high"] >= pooled["high"]
    assert table.loc[ALL, "upper"] >= pooled["upper"]


def test_readers_who_differ_widen_the_interval() -> None:
    """One sees all, one guesses: their mean says little of a third reader."""
    table = readings(pd.concat([answers([1] * 40, "a"), answers([1, 0] * 20, "b")])).set_index("reader")
    assert table.loc[ALL, "share"] == 0.75
    assert table.loc[ALL, "low"] <= 0.5
    assert table.loc[ALL, "high"] == 1
    assert table.loc[ALL, "verdict"] == "undecided"


def test_few_answers_that_are_all_right_have_an_interval() -> None:
    table = readings(pd.concat([answers([1], "a"), answers([1], "b")])).set_index("reader")
    assert table.loc[ALL, "low"] < 0.2
    assert table.loc[ALL, "p"] == 0.25
    assert math.isinf(table.loc[ALL, "d_prime"])
