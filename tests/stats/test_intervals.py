"""Intervals of paired changes: against closed forms, and the coverage that is claimed."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from helpers.simulation import SIMULATION
from scipy import optimize, stats

from medseg_attack.stats.intervals import (
    HALF_BELOW,
    SHOWN_FROM,
    change_interval,
    dirichlet,
    mean_interval,
    student_interval,
    weighted,
)
from medseg_attack.stats.patients import change

LEAST = {"one in five fails": (10,), "one in ten failed before": (4, 6, 10, 20)}  # cells that few patients leave open
CELLS = [(name, n) for name, n in product(SIMULATION.CHANGES, [4, 6, 10, 20, 35, 50]) if n not in LEAST.get(name, ())]
SOME = [("nothing changes", 6), ("one in ten fails", 10), ("half of them fail", 4), ("one in ten fails", 50)]


@pytest.mark.parametrize(
    ("name", "n"), [cell if cell in SOME else pytest.param(*cell, marks=pytest.mark.slow) for cell in CELLS]
)
def test_95_percent_of_intervals_of_a_change_cover_at_least_93(name: str, n: int) -> None:
    of = SIMULATION.CHANGES[name]
    drop = float(of.draw(200_000, np.random.default_rng(12345))["difference"].mean())
    assert SIMULATION.alarms(of, n, 400, beyond=drop)[1] >= 0.93


def test_students_alone_would_miss_a_patient_in_ten_who_fails() -> None:
    of = SIMULATION.CHANGES["one in ten fails"]
    tables = [of.draw(10, np.random.default_rng(seed))[["difference"]].to_numpy() for seed in range(200)]
    held = [low <= 0.083 <= high for low, high in (student_interval(table, np.ones((10, 1))) for table in tables)]
    assert np.mean(held) < 0.8


def equal(n: int, value: float, old: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.full((n, 1), value), np.full((n, 1), old), np.ones((n, 1))


@pytest.mark.parametrize(
    ("n", "weight"), [(4, 0.5), (HALF_BELOW - 1, 0.5), (HALF_BELOW, 0.15), (10, 0.25), (29, 0.725)]
)
def test_patients_that_agree_leave_what_others_of_that_weight_could_do(n: int, weight: float) -> None:
    """With equal changes the mean is theirs and the extreme's, in shares of Beta(weight, n)."""
    low, high = change_interval(*equal(n, -0.1, 0.7), (0.0, 1.0))
    most = stats.beta.ppf(0.975, weight, n)
    assert low == pytest.approx(-0.1 - most * 0.6, abs=0.02)  # to a score of 0
    assert high == pytest.approx(-0.1 + most * 0.4, abs=0.02)  # to a score of 1


def test_one_in_ten_is_among_many_patients_and_none_joins_them() -> None:
    assert change_interval(*equal(SHOWN_FROM, -0.1, 0.7), (0.0, 1.0)) == pytest.approx((-0.1, -0.1))


def test_a_score_without_a_greatest_value_adds_no_patient_on_that_side() -> None:
    values, old, counts = np.linspace(-1, 3, 8)[:, None], np.full((8, 1), 5.0), np.ones((8, 1))
    low, high = change_interval(values, old, counts, (0.0, np.inf))
    students = student_interval(values, counts)
    assert low < students[0]
    assert high == students[1]
    assert change_interval(values, old, counts, (-np.inf, np.inf)) == students


def test_students_interval_is_the_textbooks() -> None:
    values = np.array([3.0, 5.0, 9.0, 2.0])
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert student_interval(values[:, None], np.ones((4, 1))) == pytest.approx(expected)


@pytest.mark.parametrize("failing", [1, 3])
def test_many_skew_changes_have_the_interval_of_halls_transformation(failing: int) -> None:
    """His T + g (2 T² + 1) / (6 sqrt(n)) + g² T³ / (27 n), with skewness g, has Student's quantiles: by search."""
    n = 40
    values = np.concatenate([np.full(failing, -0.8), np.random.default_rng(0).normal(0, 0.02, n - failing)])
    skewness = stats.skew(values)

    def transformed(t: float, quantile: float) -> float:
        return t + skewness * (2 * t**2 + 1) / (6 * n**0.5) + skewness**2 * t**3 / (27 * n) - quantile

    t_low, t_high = (optimize.brentq(transformed, -50, 50, args=(q,)) for q in stats.t.ppf([0.025, 0.975], n - 1))
    error = values.std(ddof=1) / n**0.5
    low, high = change_interval(values[:, None], np.full((n, 1), 0.8), np.ones((n, 1)), (0.0, 1.0))
    students = student_interval(values[:, None], np.ones((n, 1)))
    assert (low, high) == pytest.approx(
        (min(students[0], values.mean() - t_high * error), max(students[1], values.mean() - t_low * error))
    )
    assert students[0] - low > 2 * abs(high - students[1])  # it is wider where the failures are


def test_changes_that_are_not_skew_have_students_interval() -> None:
    values = np.concatenate([np.linspace(-0.1, 0.1, 40)])[:, None]
    both = change_interval(values, np.full((40, 1), 0.5), np.ones((40, 1)), (0.0, 1.0))
    assert both == pytest.approx(student_interval(values, np.ones((40, 1))))


def test_a_change_is_no_greater_than_a_score() -> None:
    values = np.array([[-0.9], [0.9], [-0.9]])
    assert change_interval(values, np.full((3, 1), 0.5), np.ones((3, 1)), (0.0, 1.0)) == (-1.0, 1.0)


def test_two_patients_have_an_interval() -> None:
    assert np.isfinite(change_interval(*equal(2, 0.1, 0.5), (0.0, 1.0))).all()
    assert np.isfinite(mean_interval(np.full((2, 1), 0.1), np.ones((2, 1)), (0.0, 1.0))).all()


@pytest.mark.parametrize("n", [0, 1])
def test_one_patient_has_no_interval(n: int) -> None:
    assert np.isnan(change_interval(*equal(n, 0.1, 0.5), (0.0, 1.0))).all()
    assert np.isnan(mean_interval(np.full((n, 1), 0.1), np.ones((n, 1)), (0.0, 1.0))).all()


def test_the_patients_who_are_not_measured_are_like_the_others_under_the_reference_organ_by_organ() -> None:
    names = [f"p{n}" for n in range(8)]
    organs = [
        pd.DataFrame({"group": names, "unit": names, "cls": cls, "difference": 0.0, "old": old})
        for cls, old in (("a", 0.9), ("b", 0.5))
    ]
    most = stats.beta.ppf(0.975, 0.2, 8)
    result = change(pd.concat(organs, ignore_index=True))
    assert (result.low, result.high) == pytest.approx((-0.7 * most, 0.3 * most), abs=0.02)
    unpaired = organs[0].copy()
    unpaired.loc[0, ["difference", "old"]] = [np.nan, 0.1]  # a case without a pair says nothing of the reference
    assert change(unpaired).low == pytest.approx(-0.9 * stats.beta.ppf(0.975, 7 / 40, 7), abs=0.02)


def test_very_many_patients_have_fewer_draws_and_a_weight_for_the_one_who_joins_them() -> None:
    for n, draws in ((4, 4000), (1000, 4000), (1999, 2097), (9999, 1000)):
        weights = dirichlet(n, 1.0)
        assert weights.shape == (draws, n + 1)
        np.testing.assert_allclose(weights.sum(1, dtype=float), 1)
        assert weights.nbytes == 4 * draws * (n + 1)
    assert dirichlet(6).shape == (4000, 6)
    assert dirichlet(9, 3.0)[:, -1].mean() == pytest.approx(3 / 12, abs=0.01)


@pytest.mark.parametrize("n", [3, 1000, 9999])
def test_weighted_sums_are_those_of_weights_that_are_drawn_and_added_at_once(n: int) -> None:
    values = np.random.default_rng(1).random((n, 2))
    weights = np.random.default_rng(0).dirichlet(np.ones(n), len(dirichlet(n)))
    np.testing.assert_allclose(weighted(dirichlet(n), values), weights @ values, rtol=1e-7)
