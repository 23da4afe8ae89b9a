"""Statistics over patients: against enumeration and definitions, and the coverage that is claimed."""

import time
from itertools import product

import numpy as np
import pandas as pd
import pytest
from helpers.simulation import SIMULATION
from scipy import stats

from medseg_attack.errors import InputError
from medseg_attack.stats.patients import (
    FEW,
    TESTS_FROM,
    deviation,
    difference,
    holm,
    interval,
    paired,
    pairwise,
    rank_stability,
    signed_rank,
    warning,
)

CELLS = list(product(SIMULATION.COHORTS, [4, 6, 10, 20, 50]))
SOME = [("near zero", 4), ("bimodal", 10), ("one patient in ten fails", 6), ("one patient in ten fails", 20)]


@pytest.mark.parametrize(
    ("cohort", "n"), [cell if cell in SOME else pytest.param(*cell, marks=pytest.mark.slow) for cell in CELLS]
)
def test_95_percent_cover_at_least_93(cohort: str, n: int) -> None:
    share, _ = SIMULATION.coverage(SIMULATION.COHORTS[cohort], n, SIMULATION.interval_of_tables, 400)
    assert share >= 0.93


def test_a_bootstrap_would_miss_a_patient_in_ten_who_fails() -> None:
    cohort = SIMULATION.COHORTS["one patient in ten fails"]
    assert SIMULATION.coverage(cohort, 6, SIMULATION.bootstrap_t, 200)[0] < 0.8


@pytest.mark.parametrize("change", ["nothing changes", "all fall by 5 %", "one in ten fails"])
def test_a_gate_raises_few_false_alarms(change: str) -> None:
    of_change = SIMULATION.CHANGES[change]
    drop = float(of_change.draw(200_000, np.random.default_rng(12345))["difference"].mean())
    assert SIMULATION.alarms(of_change, 10, 200, beyond=drop)[0] <= 0.05


def test_a_gate_sees_what_befalls_all_patients() -> None:
    assert SIMULATION.alarms(SIMULATION.CHANGES["all fall by 5 %"], 20, 50, beyond=0.0)[0] >= 0.9


def cases(scores: np.ndarray, *, scans: int = 1, organs: int = 1) -> pd.DataFrame:
    """`scores` per patient; the same for each of its scans and organs."""
    return pd.DataFrame(
        [
            (f"p{i:02d}", f"p{i:02d}_{scan}", f"o{k}", score)
            for i, score in enumerate(scores)
            for scan in range(scans)
            for k in range(organs)
        ],
        columns=["group", "unit", "cls", "dice"],
    )


def test_more_scans_and_organs_of_the_same_patients_show_nothing_more() -> None:
    scores = np.random.default_rng(0).random(12)
    assert interval(cases(scores, scans=5, organs=4), "dice") == pytest.approx(interval(cases(scores), "dice"))


def test_an_interval_stays_within_what_the_score_can_be() -> None:
    low, high = interval(cases(np.array([0.0, 0.0, 1.0])), "dice")
    assert 0.0 <= low < high < 1.0


@pytest.mark.parametrize(("failures", "n"), [(0, 4), (1, 6), (3, 10), (10, 20)])
def test_scores_of_0_and_1_have_the_interval_of_clopper_and_pearson(failures: int, n: int) -> None:
    low, high = interval(cases(np.repeat([0.0, 1.0], [failures, n - failures])), "dice")
    exact = stats.binomtest(n - failures, n).proportion_ci(method="exact")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.015)


def test_patients_that_agree_leave_the_failures_that_so_few_cannot_rule_out() -> None:
    low, high = interval(cases(np.full(5, 0.4)), "dice")
    assert low == pytest.approx(0.4 * 0.025 ** (1 / 5), abs=0.01)
    assert 1 - high == pytest.approx(0.6 * 0.025 ** (1 / 5), abs=0.01)


def test_an_interval_is_that_of_the_mirrored_scores() -> None:
    scores = np.random.default_rng(0).beta(1, 6, 8)
    low, high = interval(cases(scores), "dice")
    assert interval(cases(1 - scores), "dice") == pytest.approx((1 - high, 1 - low), abs=0.01)


def test_intervals_of_neighbouring_scores_are_neighbours() -> None:
    scores = np.array([0.9, 0.88, 0.86, 0.1])
    bounds = [interval(cases(scores * factor), "dice") for factor in np.linspace(0, 1, 21)]
    assert (np.diff([high for _, high in bounds]) > 0).all()
    assert (np.diff([low for low, _ in bounds]) > 0).all()
    assert np.abs(np.diff(bounds, axis=0)).max() < 0.06


def test_a_distance_has_no_greatest_value_and_its_upper_bound_is_students() -> None:
    scores = np.array([3.0, 5.0, 9.0, 2.0])
    low, high = interval(cases(scores), "dice", bounds=(0, np.inf))
    assert high == pytest.approx(stats.t.interval(0.95, 3, scores.mean(), stats.sem(scores))[1])
    assert 0 < low < scores.mean()


def test_an_organ_that_a_patient_lacks_is_left_out_of_its_mean() -> None:
    table = cases(np.full(8, 0.8), organs=2)
    table.loc[table["cls"] == "o1", "dice"] = 0.4
    lacks = table["group"] == "p00"
    table.loc[lacks, "dice"] = np.where(table.loc[lacks, "cls"] == "o1", np.nan, 0.6)
    assert difference(table, "dice", beyond=0.6).p == 1.0  # every patient's mean is 0.6
    assert difference(table, "dice", beyond=0.5).p < 0.01


def by_enumeration(values: np.ndarray) -> float:
    """The two-sided signed-rank p by trying all signs."""
    ranks = pd.Series(np.abs(values)).rank().to_numpy()
    seen = abs(float((np.sign(values) * ranks).sum()))
    sums = [abs(sum(s * r for s, r in zip(signs, ranks, strict=True))) for signs in product((-1, 1), repeat=len(ranks))]
    return float(np.mean([total >= seen - 1e-9 for total in sums]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [4, 8, 11])
def test_signed_ranks_are_those_of_all_signs(n: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.3, 1, n)
    assert signed_rank(values) == pytest.approx(by_enumeration(values))


@pytest.mark.parametrize("seed", range(5))
def test_signed_ranks_of_ties_and_zeros_are_those_of_all_signs_at_once(seed: int) -> None:
    values = np.random.default_rng(seed).integers(-2, 4, 11) / 4
    begin = time.process_time()
    for _ in range(20):
        p = signed_rank(values)
    assert time.process_time() - begin < 1  # a comparison of 500 runs asks for thousands; scipy's takes 0.5 s each
    ranks, positive = pd.Series(np.abs(values)).rank().to_numpy(), values > 0
    sums = [ranks[values != 0][list(signs)].sum() for signs in product((False, True), repeat=int((values != 0).sum()))]
    tails = np.mean(np.array(sums) <= ranks[positive].sum()), np.mean(np.array(sums) >= ranks[positive].sum())
    assert p == pytest.approx(min(1, 2 * min(tails)))


def test_no_difference_is_no_evidence() -> None:
    assert signed_rank(np.zeros(9)) == 1.0
    assert np.isnan(signed_rank(np.array([])))
    assert signed_rank(np.full(8, 0.1) - np.full(8, 0.3) + 0.2) == 1.0  # 0 but for what floats add


def test_holm_is_what_holm_wrote() -> None:
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    adjusted = holm([0.02, float("nan"), 0.01])
    assert adjusted[0] == 0.02
    assert np.isnan(adjusted[1])


def test_pairs_see_what_two_intervals_would_hide() -> None:
    rng = np.random.default_rng(3)
    old = rng.uniform(0.4, 0.9, 20)
    new = old - 0.03 + rng.normal(0, 0.01, 20)
    change = difference(paired(cases(new), cases(old), "dice"))
    assert change.mean == pytest.approx((new - old).mean())
    assert -0.04 < change.low < change.high < -0.02
    assert change.p < 1e-4
    assert change.n == 20
    alone = interval(cases(new), "dice"), interval(cases(old), "dice")
    assert alone[0][1] > alone[1][0]


def test_a_difference_is_tested_against_the_number_that_is_asked_for() -> None:
    pairs = cases(np.linspace(0.02, 0.04, 10)).rename(columns={"dice": "difference"})
    assert difference(pairs).p < 0.01
    assert difference(pairs, beyond=0.03).p == 1.0


def test_only_the_same_cases_are_paired() -> None:
    with pytest.raises(InputError, match=r"same cases.*p02_0"):
        paired(cases(np.array([0.1, 0.2, 0.3])), cases(np.array([0.1, 0.2])), "dice")


def test_pairs_of_models_are_those_of_two_tables_in_any_order_of_rows() -> None:
    rng = np.random.default_rng(1)
    models = {name: cases(rng.uniform(0.5, 0.9, 9), organs=2) for name in "abc"}
    models["b"].loc[3, "dice"] = np.nan
    models["c"] = models["c"].sample(frac=1, random_state=0)
    for row in pairwise(models, "dice").to_dict("records"):
        alone = difference(paired(models[row["new"]], models[row["old"]], "dice"))
        assert {key: row[key] for key in vars(alone)} == pytest.approx(vars(alone))


def test_only_models_of_the_same_cases_are_compared_two_by_two() -> None:
    with pytest.raises(InputError, match=r"same cases.*p02_0"):
        pairwise({"a": cases(np.array([0.1, 0.2, 0.3])), "b": cases(np.array([0.1, 0.2]))}, "dice")


def test_pairs_of_models_are_corrected_for_how_many_they_are() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 0.8, 12)
    table = pairwise(
        {
            name: cases(base + shift + rng.normal(0, 0.004, 12))
            for name, shift in (("a", 0.0), ("b", 0.05), ("c", 0.05))
        },
        "dice",
    ).set_index(["new", "old"])
    assert len(table) == 3
    assert (table["p_holm"] >= table["p"]).all()
    assert table.loc[("b", "a"), "mean"] == pytest.approx(0.05, abs=0.005)
    assert table.loc[("b", "a"), "p_holm"] == pytest.approx(3 * table.loc[("b", "a"), "p"])
    assert table.loc[("c", "b"), "p_holm"] > 0.05


def test_ranks_are_as_stable_as_models_differ() -> None:
    base = np.random.default_rng(0).uniform(0.3, 0.8, 15)
    same = base + np.random.default_rng(1).normal(0, 0.05, 15)
    table = rank_stability({"good": cases(base + 0.2), "x": cases(base), "y": cases(same)}, "dice")
    assert table.loc["good"].tolist() == [1.0, 0.0, 0.0, 1, 1, 1]
    assert 0.1 < table.loc["x", 2] < 0.9
    assert table[[1, 2, 3]].sum(axis=1).tolist() == pytest.approx([1, 1, 1])
    worst = rank_stability({"good": cases(base + 0.2), "x": cases(base)}, "dice", lower_is_better=True)
    assert worst.loc["x", 1] == 1.0


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_a_rank_ranges_over_those_that_no_interval_rules_out(lower_is_better: bool) -> None:
    base = np.random.default_rng(0).uniform(0.3, 0.6, 40)
    wiggle = np.random.default_rng(1).normal(0, 0.05, (2, 40))
    models = {"good": cases(base + 0.3), "x": cases(base), "y": cases(base + wiggle[0]), "bad": cases(base - 0.2)}
    table = rank_stability(models, "dice", lower_is_better=lower_is_better, bounds=(0.0, 1.0))
    ranges = [(1, 1), (2, 3), (2, 3), (4, 4)]
    expected = [(5 - worst, 5 - best) for best, worst in ranges] if lower_is_better else ranges
    assert list(zip(table["best"], table["worst"], strict=True)) == expected
    few = rank_stability(
        {name: table[table["group"] < "p05"] for name, table in models.items()}, "dice", bounds=(0.0, 1.0)
    )
    assert (few["best"] <= few["seen"]).all()
    assert (few["worst"] >= few["seen"]).all()
    assert few.loc["x", "worst"] == 4  # 5 patients leave more open


def test_equal_models_share_the_better_rank() -> None:
    base = np.random.default_rng(0).random(6)
    table = rank_stability({"a": cases(base), "b": cases(base)}, "dice")
    assert table[1].tolist() == [1.0, 1.0]


def test_models_are_ranked_on_the_same_patients_only() -> None:
    with pytest.raises(InputError, match="same patients"):
        rank_stability({"a": cases(np.array([0.1, 0.2])), "b": cases(np.array([0.1, 0.2, 0.3]))}, "dice")


def test_a_warning_says_what_so_few_patients_cannot_show() -> None:
    assert "no interval" in warning(1)
    assert "0.062" in warning(TESTS_FROM - 1)
    assert "are few" in warning(TESTS_FROM - 1)
    assert "signed-rank" not in warning(TESTS_FROM)
    assert "are few" in warning(FEW - 1)
    assert warning(FEW) == ""
    assert "20 comparisons" in warning(8, comparisons=20)
    smallest = signed_rank(np.arange(1.0, TESTS_FROM + 1))
    assert smallest < 0.05 <= signed_rank(np.arange(1.0, TESTS_FROM))


@pytest.mark.parametrize("n", [10, 14, 20])
def test_zeros_rank_and_have_no_sign_whatever_the_number_of_patients(n: int) -> None:
    """Pratt's rule: without the zeros' ranks, three small losses would weigh next to nothing against seven gains."""
    values = np.concatenate([np.zeros(n - 10), -np.arange(1.0, 4), np.arange(4.0, 11)]) / 100
    ranks = pd.Series(np.abs(values)).rank().to_numpy()[values != 0]
    sums = np.array([ranks[list(signs)].sum() for signs in product((False, True), repeat=len(ranks))])
    negative = ranks[:3].sum()
    exact = 2 * np.mean(sums <= negative)
    assert signed_rank(values) == pytest.approx(exact, abs=1e-9 if n <= 13 else 0.015)


def test_two_patients_have_a_deviation_and_an_organ_that_one_lacks_is_left_out() -> None:
    table = cases(np.array([0.4, 0.8]), scans=2, organs=2)
    assert deviation(table, "dice") == pytest.approx(np.std([0.4, 0.8], ddof=1))
    assert np.isnan(deviation(table[table["group"] == "p00"], "dice"))
    lacks = (table["group"] == "p01") & (table["cls"] == "o1")
    table.loc[lacks, "dice"] = np.nan
    table.loc[table["cls"] == "o1", "dice"] -= 0.2
    assert deviation(table, "dice") == pytest.approx(np.std([0.3, 0.8], ddof=1))


def test_of_many_patients_who_are_all_equal_no_model_is_ahead_for_sure() -> None:
    base = np.random.default_rng(0).random(40)
    table = rank_stability({"a": cases(base), "b": cases(base)}, "dice", bounds=(0.0, 1.0))
    assert table[["best", "worst"]].to_numpy().tolist() == [[1, 2], [1, 2]]


def test_warnings_are_whole_sentences() -> None:
    few = "{} patients are few: they cannot rule out that {} % of all patients fail outright"
    assert warning(2) == (
        f"{few.format(2, 84)}; no signed-rank test of 2 patients can reach p < 0.05 (least possible 0.5)."
    )
    assert warning(8) == f"{few.format(8, 37)}."
    assert warning(8, comparisons=20) == (
        f"{few.format(8, 37)}; no signed-rank test of 8 patients and 20 comparisons can reach p < 0.05 "
        "(least possible 0.16)."
    )
    assert "least possible 1)" in warning(3, comparisons=9)


def test_cases_of_one_side_only_are_counted_in_the_first_pair_that_has_some() -> None:
    four, two, three = (cases(np.full(n, 0.5)) for n in (4, 2, 3))
    with pytest.raises(InputError, match=r"got 2 of one only, such as p02_0 \(o0\)"):
        paired(four, two, "dice")
    new, old = (
        pd.concat([each.assign(run=run) for run, each in zip("abc", tables, strict=True)])
        for tables in ((four, four, four), (four, three, two))
    )
    with pytest.raises(InputError, match=r"got 1 of one only, such as p03_0 \(o0\)"):
        paired(new, old, "dice", within=["run"])


def test_a_patient_without_any_score_is_none_of_those_who_are_counted() -> None:
    scores = np.array([0.5, 0.4, 0.7, 0.6, 0.9])
    absent = difference(cases(np.append(scores, np.nan), organs=2), "dice")
    assert vars(absent) == pytest.approx(vars(difference(cases(scores, organs=2), "dice")))
    assert absent.n == 5
