"""Scores, averages and intervals on tables small enough to be worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score, jaccard_score

from medseg_attack.errors import InputError
from medseg_attack.metrics.empty import Empty
from medseg_attack.stats.patients import interval
from medseg_attack.stats.scores import aimed, bounds_of, by_organ, check_unit, pooled, scored, scores, success, summary

NAN = float("nan")


def table(*rows: tuple[object, ...]) -> pd.DataFrame:
    """Columns: group, volume, case, cls, n_target, n_clean, hit_clean, n_adv, hit_adv."""
    columns = ["group", "volume", "case", "cls", "n_target", "n_clean", "hit_clean", "n_adv", "hit_adv"]
    return pd.DataFrame(rows, columns=columns).assign(run="r", n_target_adv=lambda made: made["n_target"])


@pytest.mark.parametrize(
    ("empty", "n_target", "n_pred", "hit", "dice"),
    [
        ("one", 0, 0, 0, 1.0),
        ("nan", 0, 0, 0, NAN),
        ("zero", 0, 0, 0, 0.0),  # absent from both
        ("one", 0, 5, 0, 0.0),
        ("nan", 0, 5, 0, NAN),
        ("zero", 0, 5, 0, 0.0),  # hallucinated
        ("one", 5, 0, 0, 0.0),
        ("nan", 5, 0, 0, 0.0),
        ("zero", 5, 0, 0, 0.0),  # missed
        ("one", 4, 4, 3, 0.75),
        ("nan", 4, 4, 3, 0.75),
        ("zero", 4, 4, 3, 0.75),
    ],
)
def test_every_row_of_the_empty_rules(empty: Empty, n_target: int, n_pred: int, hit: int, dice: float) -> None:
    case = table(("p", "v", "c", "a", n_target, n_pred, hit, n_pred, hit))
    row = scored(case, empty).iloc[0]
    assert (row["dice_clean"], row["dice_adv"]) == pytest.approx((dice, dice), nan_ok=True)
    iou = dice / (2 - dice)  # of the same counts, and where they say nothing of the same rule
    assert (row["iou_clean"], row["iou_adv"]) == pytest.approx((iou, iou), nan_ok=True)
    touched = n_target == 0 if empty == "nan" else n_target == n_pred == 0
    assert row["touched"] == touched


def test_scores_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, pred = rng.random(50) < 0.4, rng.random(50) < 0.5
        case = table(("p", "v", "c", "a", truth.sum(), pred.sum(), (truth & pred).sum(), 0, 0))
        row = scored(case, "one").iloc[0]
        assert row["dice_clean"] == pytest.approx(f1_score(truth, pred))
        assert row["iou_clean"] == pytest.approx(jaccard_score(truth, pred))


ROWS = table(
    ("p1", "v1", "s1", "liver", 10, 10, 10, 0, 0),
    ("p1", "v1", "s2", "liver", 30, 30, 30, 30, 30),
    ("p2", "v2", "s3", "liver", 20, 20, 20, 10, 5),
    ("p1", "v1", "s1", "aorta", 4, 4, 4, 4, 4),
    ("p1", "v1", "s2", "aorta", 0, 0, 0, 0, 0),
    ("p2", "v2", "s3", "aorta", 4, 4, 2, 0, 0),
)


def test_counts_are_added_up_before_they_are_scored() -> None:
    volumes = scored(pooled(ROWS, "volume"), "one").set_index(["unit", "cls"])["dice_adv"]
    assert volumes["v1", "liver"] == pytest.approx(2 * 30 / (40 + 30))
    slices = scored(pooled(ROWS, "slice"), "one").set_index(["unit", "cls"])["dice_adv"]
    assert slices["s1", "liver"] == 0
    assert slices["s2", "aorta"] == 1
    assert pooled(ROWS, "patient")["unit"].tolist() == pooled(ROWS, "patient")["group"].tolist()


def test_means_are_over_cases_then_over_organs() -> None:
    means = by_organ(scored(pooled(ROWS, "volume"), "one"), "dice_adv").iloc[0]
    liver, aorta = np.mean([60 / 70, 10 / 30]), np.mean([1.0, 0.0])
    assert means.to_dict() == pytest.approx({"liver": liver, "aorta": aorta, "mean": (liver + aorta) / 2})
    assert list(means.index) == ["liver", "aorta", "mean"]


def test_success_is_three_stated_numbers() -> None:
    rates = success(scored(pooled(ROWS, "volume"), "one"))
    clean, adv = np.mean([1.0, 1.0, 1.0, 0.5]), np.mean([60 / 70, 10 / 30, 1.0, 0.0])
    assert rates["relative_drop"] == pytest.approx(1 - adv / clean)
    assert (rates["below_half"], rates["missed"]) == (2 / 4, 1 / 4)


def test_a_rate_has_the_interval_of_its_patients() -> None:
    patients = [(f"p{i}", f"v{i}", f"s{i}", "a", 100, 100, 100, 100 * (i > 0), 100 * (i > 0)) for i in range(8)]
    rates = success(scored(table(*patients).rename(columns={"case": "unit"}), "one"))
    exact = binomtest(1, 8).proportion_ci(method="exact")
    for name in ("below_half", "missed"):
        assert rates[name] == 1 / 8
        assert (rates[f"{name}_low"], rates[f"{name}_high"]) == pytest.approx((exact.low, exact.high), abs=0.015)


def test_an_average_is_a_mean_of_cases_and_of_organs_and_no_median() -> None:
    rows = table(
        *[
            (f"p{i}", f"v{i}", f"s{i}", cls, 100, 100, 100, 100, hit)
            for cls, hits in {"a": (10, 20, 90), "b": (30, 40, 80), "c": (100, 100, 100)}.items()
            for i, hit in enumerate(hits)
        ]
    )
    means = by_organ(scored(pooled(rows, "volume"), "one"), "dice_adv").iloc[0]
    assert means.to_dict() == pytest.approx({"a": 0.4, "b": 0.5, "c": 1.0, "mean": 1.9 / 3})
    facts = rows.assign(model="m", attack="fgsm", eps=0.1, data="d", split="test", partial=False)
    of_class = scores(facts, unit="volume", empty="one")[0].set_index("cls")
    assert of_class["dice"].to_dict() == pytest.approx({"a": 0.4, "b": 0.5, "c": 1.0})
    iou = {
        cls: np.mean([d / (2 - d) for d in dice]) for cls, dice in {"a": (0.1, 0.2, 0.9), "b": (0.3, 0.4, 0.8)}.items()
    }
    assert of_class["iou"].to_dict() == pytest.approx(iou | {"c": 1.0})


@pytest.mark.parametrize(
    ("counts", "below_half", "missed"),
    [  # n_target, n_clean, hit_clean, n_adv, hit_adv
        ((10, 10, 6, 10, 4), 0, 0),  # 0.6 -> 0.4: below 0.5, and not below the half of 0.6
        ((10, 10, 10, 10, 5), 0, 0),  # 1.0 -> 0.5: the half itself
        ((10, 10, 10, 10, 4), 1, 0),
        ((10, 10, 6, 10, 2), 1, 0),
        ((10, 10, 6, 5, 0), 1, 0),  # predicted, though nowhere right: not missed
        ((10, 10, 6, 0, 0), 1, 1),
        ((10, 5, 0, 0, 0), NAN, NAN),  # not found on the clean image: it cannot be lost
        ((10, 0, 0, 0, 0), NAN, NAN),
        ((0, 5, 0, 0, 0), NAN, NAN),
    ],
)
def test_halved_and_missed_are_told_from_what_the_model_found(
    counts: tuple[int, ...], below_half: float, missed: float
) -> None:
    rates = success(scored(table(("p", "v", "s", "a", *counts)), "one").assign(unit="v"))
    assert (rates["below_half"], rates["missed"]) == pytest.approx((below_half, missed), nan_ok=True)


def test_an_absent_organ_is_neither_halved_nor_missed() -> None:
    absent = table(("p", "v", "s", "a", 0, 0, 0, 9, 0), ("p", "v", "s", "b", 4, 4, 4, 4, 4))
    rates = success(scored(absent, "one"))
    assert (rates["below_half"], rates["missed"]) == (0, 0)


def test_an_interval_is_over_patients_not_over_slices() -> None:
    few = pd.concat([ROWS] * 1)
    many = pd.concat([ROWS.assign(case=ROWS["case"] + str(i)) for i in range(50)])  # the same patients, more slices
    of_few, of_many = (interval(scored(pooled(t, "slice"), "one"), "dice_adv") for t in (few, many))
    assert of_few == pytest.approx(of_many)
    assert of_few[0] < of_few[1]


def test_an_interval_matches_the_normal_one_when_patients_are_many() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(20, 80, 1600)
    cases = scored(
        table(*[(f"p{i}", f"v{i}", f"s{i}", "a", 100, 100, 100, 100, int(v)) for i, v in enumerate(values)]).rename(
            columns={"case": "unit"}
        ),
        "one",
    )
    low, high = interval(cases, "dice_adv")
    half = 1.96 * (values / 100).std(ddof=1) / 40
    assert (low, high) == pytest.approx(((values / 100).mean() - half, (values / 100).mean() + half), abs=0.001)


def test_an_interval_of_one_patient_is_nothing() -> None:
    one = scored(pooled(ROWS[ROWS["group"] == "p1"], "volume"), "one")
    assert np.isnan(interval(one, "dice_adv")).all()


def test_an_organ_that_is_left_out_everywhere_does_not_hide_the_rest() -> None:
    each = [(f"p{i}", f"v{i}", f"s{i}") for i in range(8)]
    absent = table(*[(*one, "a", 0, 0, 0, 0, 0) for one in each])
    present = table(*[(*one, "b", 4, 4, 4, 4, 2 + 2 * (i % 2)) for i, one in enumerate(each)])
    rows = pd.concat([absent, present])
    cases = scored(pooled(rows, "volume"), "nan")
    assert by_organ(cases, "dice_adv").iloc[0].to_dict() == pytest.approx(
        {"a": NAN, "b": 0.75, "mean": 0.75}, nan_ok=True
    )
    alone = interval(scored(pooled(present, "volume"), "nan"), "dice_adv")
    assert interval(cases, "dice_adv") == pytest.approx(alone)
    assert 0 < alone[0] < 0.75 < alone[1]


def test_a_summary_says_how_many_scores_the_rule_decided() -> None:
    rows = ROWS.assign(linf=0.01, forwards=2, backwards=1, model="m")
    of_slices = summary(rows, unit="slice", empty="one", header=["model"]).iloc[0]
    assert (of_slices["touched"], of_slices["entries"], of_slices["patients"]) == (1, 6, 2)
    of_volumes = summary(rows, unit="volume", empty="one").iloc[0]
    assert of_volumes["touched"] == 0
    assert of_volumes["drop"] == pytest.approx(of_volumes["mean_clean"] - of_volumes["mean_adv"])


def test_whole_scans_have_no_scores_of_slices() -> None:
    for unit, dims in (("slice", [2, 2]), ("slice", []), ("volume", [3]), ("patient", [2, 3])):
        check_unit(unit, dims)
    with pytest.raises(InputError, match="got slice; choose one"):
        check_unit("slice", [2, 3])


def test_a_distance_ends_at_the_longest_diagonal_and_a_share_at_1() -> None:
    rows = table(*[(f"p{i}", f"v{i}", f"s{i}", "a", 4, 4, 4, 4, 2) for i in range(6)])
    far = {"hd95_mm_clean": 1.0, "hd95_mm_adv": 10.0, "nsd_clean": 1.0, "nsd_adv": 0.4}
    rows = rows.assign(linf=0.01, forwards=2, backwards=1, **far, diagonal_mm=[80.0, 90.0, 70.0, NAN, 80.0, 80.0])
    most = 1 - 0.025 ** (1 / 6)  # the share of patients that six equal ones cannot rule out
    of_run = summary(rows, unit="volume", empty="one").iloc[0]
    ends = of_run["adv_hd95_mm_low"], of_run["adv_hd95_mm_high"]
    assert ends == pytest.approx((10 * (1 - most), 10 + 80 * most), abs=1)
    assert (of_run["adv_nsd_low"], of_run["adv_nsd_high"]) == pytest.approx(
        (0.4 * (1 - most), 0.4 + 0.6 * most), abs=0.02
    )
    older = summary(rows.drop(columns="diagonal_mm"), unit="volume", empty="one").iloc[0]
    assert older["adv_hd95_mm_high"] == 10.0  # Student's, of equal distances
    assert bounds_of("hd95_mm", rows.assign(diagonal_mm=NAN)) == (0.0, float("inf"))


def test_the_success_of_an_attack_with_a_goal_is_worked_out_by_hand() -> None:
    columns = ["case", "success", "success_of_clean", "success_on_truth", "size", "n_goal", "hit_goal", "n_adv"]
    numbers = [("s1", 1, 0, 1, 0.2, 10, 5, 10), ("s2", 1, 1, 0, 0.0, 0, 0, 10), ("s3", 0, 0, 0, 0.9, 4, 1, 4)]
    rows = pd.DataFrame([*numbers, ("s4", 1, 0, 1, 0.6, 0, 0, 0)], columns=columns)
    rows = rows.assign(volume=rows["case"], group="p", cls="a", run="r")
    result = aimed(pd.concat([rows, rows.assign(cls="b")], ignore_index=True), "volume")
    assert result["success"] == 0.75
    assert result["success_of_clean"] == 0.25
    assert result["success_on_truth"] == 0.5
    assert (result["least"], result["least_mean"]) == pytest.approx((0.4, 0.4))  # of s1 and s4
    assert result["goal_dice"] == pytest.approx((0.5 + 0.0 + 0.25) / 3)  # s4 has neither
    without = aimed(rows.drop(columns=["n_goal", "success_on_truth"]), "volume")
    assert np.isnan([without["goal_dice"], without["success_on_truth"]]).all()
    partly = rows.assign(success=[1.0, NAN, NAN, 1.0], n_goal=[10.0, NAN, NAN, 0.0], n_adv=[10, 0, 0, 0])
    assert aimed(partly, "volume")["success"] == 1.0
    assert aimed(partly, "volume")["goal_dice"] == pytest.approx(0.5)
    assert np.isnan(list(aimed(rows.assign(success=NAN), "volume").values())).all()
    assert np.isnan(list(aimed(rows.drop(columns="success"), "volume").values())).all()


def test_a_measure_beyond_1_is_no_share_and_an_option_does_not_make_a_distance_one() -> None:
    rows = pd.DataFrame({"share_adv": [0.5, 1.0], "ml_adv": [0.5, 120.0], "shift_adv": [-0.5, 0.5], "ml_clean": NAN})
    assert bounds_of("share", rows) == bounds_of("nsd(tolerance_mm=1)", rows) == (0.0, 1.0)
    assert bounds_of("ml", rows) == (0.0, float("inf"))
    assert bounds_of("shift", rows) == (-float("inf"), 1.0)
    assert bounds_of("own_mm(share=1)", rows.assign(diagonal_mm=40.0)) == (0.0, 40.0)
