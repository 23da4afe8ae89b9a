"""Alarms: conformal p-values keep their promise, AUROC is a probability, and the table counts harm that went by."""

import math

import numpy as np
import pandas as pd
import pytest

from medseg_attack.errors import InputError
from medseg_attack.report.detectors import detector_sheet, goal_sheet, has_goals
from medseg_attack.stats.alarms import (
    alarm_table,
    auroc,
    auroc_interval,
    least_patients,
    least_rate,
    limit,
    main_rate,
    p_values,
    rates,
    require_rate,
    share_interval,
    two_sided_p_values,
    verdict,
)
from medseg_attack.stats.intervals import mean_interval


@pytest.mark.parametrize("n", [19, 30, 99])
@pytest.mark.parametrize("rate", [0.05, 0.1])
def test_false_alarms_of_exchangeable_patients_are_what_was_promised(n: int, rate: float) -> None:
    random, draws = np.random.default_rng(n), 10_000
    false = [p_values(random.normal(size=1), random.normal(size=n))[0] <= rate + 1e-12 for _ in range(draws)]
    noise = 3 * math.sqrt(rate * (1 - rate) / draws)
    assert rate - 1 / (n + 1) - noise <= np.mean(false) <= rate + noise


@pytest.mark.parametrize("n", [39, 99])
@pytest.mark.parametrize("rate", [0.05, 0.1])
def test_two_sided_false_alarms_are_what_was_promised(n: int, rate: float) -> None:
    random, draws = np.random.default_rng(n), 10_000
    false = [two_sided_p_values(random.normal(size=1), random.normal(size=n))[0] <= rate + 1e-12 for _ in range(draws)]
    noise = 3 * math.sqrt(rate * (1 - rate) / draws)
    assert rate - 1 / (n + 1) - noise <= np.mean(false) <= rate + noise


def test_a_score_that_is_lower_than_all_clean_ones_is_suspicious_by_two_sides_alone() -> None:
    calibration = np.arange(39.0)
    scores = np.array([-1.0, 19.0, 40.0])
    assert p_values(scores, calibration) == pytest.approx([1, 0.525, 0.025])
    assert two_sided_p_values(scores, calibration) == pytest.approx([0.05, 1, 0.05])
    assert two_sided_p_values(-scores, -calibration) == pytest.approx([0.05, 1, 0.05])


def test_the_table_says_what_two_sided_alarms_would_notice() -> None:
    rows = [
        {"row": row, "kind": kind, "attack": kind, "eps": "", "noise": 1, "group": f"p{n}", "score": 0.0, "p": 1.0}
        | {"p_two_sided": p, "dice_clean": 0.8, "dice": 0.1}
        for row, kind, both in ((0, "clean", (0.5, 0.5)), (1, "attack", (0.05, 0.5)), (2, "adaptive", (0.05, 0.05)))
        for n, p in enumerate(both)
    ]
    table = alarm_table(pd.DataFrame(rows), 39)
    assert table["alarms_two_sided"].tolist() == [0, 0.5, 1]
    assert (
        "of which 5 % are false: up to 0 % of clean ones, 50 % of those attacked, 100 % of those attacked by who"
        in (detector_sheet(table, title="t", n_calibration=39).caption)
    )


@pytest.mark.parametrize("n", [1, 4, 9, 19, 20, 99])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.2, 0.5])
def test_a_score_above_the_limit_and_no_other_has_a_p_value_of_the_rate(n: int, rate: float) -> None:
    calibration = np.random.default_rng(n).normal(size=n).round(1)  # with ties
    scores = np.concatenate([calibration, calibration + 0.05, [-9.0, 9.0]])
    above = scores > limit(calibration, rate)
    assert (above == (p_values(scores, calibration) <= rate + 1e-12)).all()
    assert above.any() == (n >= least_patients(rate))


def test_rates_that_few_patients_cannot_promise_have_one_beside_them_that_they_can() -> None:
    assert rates(99) == rates(19) == (0.01, 0.05, 0.1)
    assert rates(4)[-1] == main_rate(4) == pytest.approx(0.2)
    assert main_rate(15) == pytest.approx(1 / 16)


def test_auroc_is_the_share_of_pairs_that_are_in_order() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    negative, positive = random.normal(size=30).round(1), (random.normal(size=30) + 0.5).round(1)
    labels = [0] * 30 + [1] * 30
    assert auroc(negative, positive) == pytest.approx(roc_auc_score(labels, np.concatenate([negative, positive])))


def test_the_interval_of_auroc_covers_chance_and_does_not_trust_few_patients() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = auroc_interval(random.normal(size=15), random.normal(size=15))
        covered += low <= 0.5 <= high
    assert covered >= 190
    low, high = auroc_interval(np.arange(10.0), 100 + np.arange(10.0))
    assert 0.6 < low < 0.8
    assert high == pytest.approx(1.0)
    assert all(map(math.isnan, auroc_interval(np.array([0.0]), np.array([1.0]))))


def table_of(n_calibration: int = 19) -> pd.DataFrame:
    """Four patients: two are harmed by the attack, of whom one raises an alarm."""
    rows = [
        {"row": row, "kind": kind, "attack": kind, "eps": "4/255", "noise": 1, "group": f"p{n}", "score": score, "p": p}
        | {"dice_clean": 0.8, "dice": dice}
        for row, kind, values in (
            (0, "clean", [(0.0, 1.0, 0.8)] * 3 + [(0.3, 0.05, 0.8)]),
            (1, "noise", [(0.1, 0.5, 0.8)] * 4),
            (2, "attack", [(0.9, 0.05, 0.1), (0.2, 0.4, 0.1), (0.9, 0.05, 0.7), (0.0, 1.0, 0.7)]),
        )
        for n, (score, p, dice) in enumerate(values)
    ]
    return alarm_table(pd.DataFrame(rows), n_calibration)


def test_the_table_counts_alarms_and_the_harm_that_nobody_noticed() -> None:
    clean, noise, attack = (row for _, row in table_of().iterrows())
    assert (clean["alarms_0.05"], noise["alarms_0.05"], attack["alarms_0.05"]) == (0.25, 0.0, 0.5)
    assert (clean["alarms_0.05_low"], clean["alarms_0.05_high"]) == share_interval(1, 4)
    assert math.isnan(attack["alarms_0.01"]), "19 patients cannot promise 1 %"
    assert (attack["harmed"], attack["noticed"], attack["missed"]) == (2, 0.5, 0.25)
    assert attack["risk"] == pytest.approx(0.25 + 0.1 * 0.25)
    assert attack["auroc_noise"] == pytest.approx((4 + 4 + 4 + 0) / 16)


def test_the_sheet_says_what_few_patients_cannot_promise_and_that_no_attack_knew_the_detector() -> None:
    sheet = detector_sheet(table_of(4), title="t", n_calibration=4)
    assert "With fewer than 19 of them 5 % cannot be promised: the least is 20 %." in sheet.caption
    assert "non_adaptive" in sheet.caption
    assert "Realised at 20 %: 1 of 4 clean test patients (1-81 %)." in sheet.caption
    column = list(sheet.columns).index("at 5 %")
    assert {row[column] for row in sheet.rows} == {"-"}


def test_the_sheet_of_goals_has_what_is_noticed_least_of_each() -> None:
    lines = [("attack", "", 0.9, 1.0, 0.0), ("attack", "", 0.6, 0.5, 0.3), ("attack", "erase", 0.2, math.nan, 0.0)]
    lines += [("adaptive", "", 0.1, 0.25, 0.7), ("clean", "", math.nan, math.nan, math.nan)]
    table = pd.DataFrame(lines, columns=["kind", "goal", "auroc", "noticed", "missed"])
    assert has_goals(table)
    assert not has_goals(table[table["goal"] == ""])
    assert not has_goals(table.drop(columns="goal"))
    assert list(goal_sheet(table, title="t", n_calibration=19).rows) == [
        ["any but the truth", "2", "0.60", "50 %", "30 %", "0.10", "25 %", "70 %"],
        ["erase", "1", "0.20", "-", "0 %", "-", "-", "-"],
    ]


@pytest.mark.parametrize(
    ("missed", "aware", "noise", "expected"),
    [
        (0.0, 0.0, 0.0, "notices harmful attacks, also those that know it"),
        (0.0, 1.0, 0.0, "notices only attacks that do not know it"),
        (1.0, 1.0, 0.0, "does not notice harmful attacks"),
        (0.0, None, 0.0, "non_adaptive: no attack that was tried knows it"),
        (0.0, 1.0, 0.9, "notices only attacks that do not know it; alarms at noise"),
        (0.3, 0.5, 0.0, "not decided with 20 patients"),
    ],
)
def test_a_verdict_follows_from_the_patients_who_are_harmed_unnoticed(
    missed: float, aware: float | None, noise: float, expected: str
) -> None:
    rows = [{"kind": "noise", "alarms_0.05_low": noise}, {"kind": "attack", "harmed": 20, "missed": missed}]
    rows += [] if aware is None else [{"kind": "adaptive", "harmed": 20, "missed": aware}]
    assert verdict(pd.DataFrame(rows).assign(patients=20), 19) == expected


def test_what_did_no_harm_decides_nothing() -> None:
    rows = [{"kind": "attack", "harmed": 0, "missed": 0.0, "patients": 20}]
    assert verdict(pd.DataFrame(rows), 19).startswith("not decided: no attack")


def test_a_rate_that_no_patients_can_promise_is_refused_with_the_least_number() -> None:
    require_rate(0.05, 19, "data")
    require_rate(0.99, 1, "data")
    for rate in (-0.1, 0.0, 1.0, 1.5):
        with pytest.raises(InputError, match="between 0 and 1"):
            require_rate(rate, 99, "data")
    with pytest.raises(InputError, match=r"expected 19 calibration patients .* got 18 in data; ask for 0\.053 or more"):
        require_rate(0.05, 18, "data")
    for patients in range(1, 400):  # what the sentence asks for is not refused
        require_rate(float(f"{least_rate(patients):g}"), patients, "data")


def test_p_values_and_limits_of_a_table() -> None:
    calibration = np.arange(1.0, 10.0)
    assert p_values(np.array([0.5, 1.0, 5.0, 9.0, 9.5]), calibration) == pytest.approx([1, 1, 0.6, 0.2, 0.1])
    assert [limit(calibration, rate) for rate in (0.05, 0.1, 0.19, 0.2, 0.9, 0.99)] == [math.inf, 9, 9, 8, 1, 1]
    assert [least_patients(rate) for rate in (0.5, 0.1, 0.099, 0.3)] == [1, 9, 10, 3]


def test_the_interval_of_auroc_is_that_of_delongs_components() -> None:
    negative, positive = np.array([0.1, 0.4, 0.35, 0.8, 0.2]), np.array([0.3, 0.9, 0.4, 0.7, 0.9])
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    parts = wins.mean(1) + wins.mean(0) - wins.mean()
    assert parts.mean() == pytest.approx(auroc(negative, positive))
    low, high = mean_interval(parts[:, None], np.ones((5, 1)), (0.0, 1.0))
    assert auroc_interval(negative, positive) == pytest.approx((max(low, 0), min(high, 1)))


def test_a_row_of_the_table_has_its_own_patients_noise_and_interval() -> None:
    table = table_of()
    attack = table.iloc[2]
    assert table["kind"].tolist() == ["clean", "noise", "attack"]
    assert table["patients"].tolist() == [4, 4, 4]
    assert table["dice"].tolist() == pytest.approx([0.8, 0.8, 0.4])
    assert math.isnan(table["auroc"][0])
    assert attack["auroc"] == pytest.approx(auroc(np.array([0, 0, 0, 0.3]), np.array([0.9, 0.2, 0.9, 0])))
    ends = auroc_interval(np.array([0, 0, 0, 0.3]), np.array([0.9, 0.2, 0.9, 0]))
    assert (attack["low"], attack["high"]) == pytest.approx(ends)
    assert (attack["alarms_0.1"], attack["alarms_0.1_low"]) == (0.5, share_interval(2, 4)[0])
    assert math.isnan(attack["alarms_0.01_high"])
    assert table[["harmed", "risk"]].isna().all(axis=1).tolist() == [True, True, False]


def test_half_of_the_dice_is_harm_and_a_p_of_the_rate_is_an_alarm() -> None:
    rows = [
        {"row": row, "kind": kind, "attack": kind, "eps": "", "noise": 9, "group": f"p{n}", "score": 0.0, "p": p}
        | {"dice_clean": 0.8, "dice": dice}
        for row, kind, values in (
            (0, "clean", [(1.0, 0.8), (0.2, 0.8)]),
            (1, "adaptive", [(0.2, 0.4), (0.21, 0.4)]),
            (2, "attack", [(0.2, 0.41), (1.0, 0.41)]),
        )
        for n, (p, dice) in enumerate(values)
    ]
    _, adaptive, attack = (row for _, row in alarm_table(pd.DataFrame(rows), 4).iterrows())
    assert adaptive["alarms_0.2"] == attack["alarms_0.2"] == 0.5
    assert (adaptive["harmed"], adaptive["noticed"], adaptive["missed"]) == (2, 0.5, 0.5)
    assert adaptive["risk"] == pytest.approx(0.5 + 0.1 * 0.5)
    assert (attack["harmed"], attack["missed"]) == (0, 0)
    assert math.isnan(attack["noticed"])
    assert "auroc_noise" not in attack


@pytest.mark.parametrize(
    ("harmed", "missed", "aware", "expected"),
    [
        (20, 14 / 20, 0.0, "not decided with 20 patients"),  # 14 of 20: the interval begins at 0.46
        (20, 15 / 20, 0.0, "does not notice harmful attacks"),  # 15 of 20: at 0.51
        (20, 5 / 20, 0.0, "notices harmful attacks, also those that know it"),  # it ends at 0.49
        (20, 6 / 20, 0.0, "not decided with 20 patients"),  # at 0.54
        (20, 0.0, 6 / 20, "not decided with 20 patients"),
        (6, 0.0, 0.0, "notices harmful attacks, also those that know it"),  # 6 of 6 noticed: from 0.54
        (5, 0.0, 0.0, "not decided with 20 patients"),  # 5 of 5: from 0.48
        (20, 1 / 20, 11 / 20, "notices only attacks that do not know it"),
    ],
)
def test_a_verdict_turns_where_clopper_and_pearsons_interval_does(
    harmed: int, missed: float, aware: float, expected: str
) -> None:
    rows = [{"kind": "attack", "harmed": harmed, "missed": missed}, {"kind": "attack", "harmed": 1, "missed": 0.0}]
    rows += [{"kind": "adaptive", "harmed": 20, "missed": aware}, {"kind": "adaptive", "harmed": 20, "missed": 0.0}]
    if missed == 0:
        rows.pop(1)
    assert verdict(pd.DataFrame(rows).assign(patients=20), 19) == expected


@pytest.mark.parametrize(("low", "cries"), [(0.05, False), (0.051, True)])
def test_alarms_at_noise_are_those_beyond_what_was_promised(low: float, cries: bool) -> None:
    rows = [{"kind": "noise", "alarms_0.05_low": low}, {"kind": "noise", "alarms_0.05_low": 0.0}]
    rows += [{"kind": kind, "harmed": 20, "missed": 0.0} for kind in ("attack", "adaptive")]
    assert verdict(pd.DataFrame(rows).assign(patients=20), 19).endswith("; alarms at noise") == cries


def test_the_rows_of_a_table_follow_their_numbers_and_patients_their_names() -> None:
    rows = [
        {"row": row, "kind": kind, "attack": kind, "eps": "", "noise": 0, "group": f"p{n}", "score": score, "p": 0.5}
        | {"dice_clean": 0.8, "dice": 0.1 * row}
        for row, kind in ((2, "attack"), (0, "clean"), (1, "noise"))
        for n, score in enumerate((0.1, 0.7, 0.3))
    ]
    shuffled = pd.DataFrame(rows).sample(frac=1, random_state=3)
    table = alarm_table(shuffled, 19)
    assert table["kind"].tolist() == ["clean", "noise", "attack"]
    pd.testing.assert_frame_equal(table, alarm_table(pd.DataFrame(rows), 19))


def test_a_verdict_that_is_open_names_the_fewest_patients_of_a_row() -> None:
    rows = [{"kind": "noise", "alarms_0.05_low": 0.0, "patients": 30}]
    rows += [{"kind": kind, "harmed": 20, "missed": 0.3, "patients": 20} for kind in ("attack", "adaptive")]
    assert verdict(pd.DataFrame(rows), 19) == "not decided with 20 patients"
