"""Rank correlations of factors with the Dice that is taken: their unit is the patient, or the model."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from medseg_attack.stats.associations import UNMEASURED, _draws, _ends, associations


def rows(run: str, taken: dict[str, list[int]], role: str = "attack", **facts: object) -> pd.DataFrame:
    """Slices of one organ, 100 pixels each and found whole; an attack takes so many pixels of each slice's hits."""
    header = {"model": run, "attack": "fgsm", "loss": "bce", "eps": 0.01, "ball": "linf", "role": role} | facts
    return pd.DataFrame(
        [
            header
            | {"run": run, "group": patient, "volume": f"{patient}_{n}", "case": f"{patient}_{n}", "cls": "organ"}
            | {"n_target": 100, "n_clean": 100, "hit_clean": 100, "n_target_adv": 100, "n_adv": 100}
            | {"hit_adv": 100 - lost, "slice": f"{patient}_{n}"}
            for patient, of_patient in taken.items()
            for n, lost in enumerate(of_patient)
        ]
    )


def values(run: str, of_patient: dict[str, list[float]], factor: str = "luminosity") -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"run": run, "group": patient, "volume": f"{patient}_{n}", "cls": "organ", "factor": factor, "value": value}
            for patient, numbers in of_patient.items()
            for n, value in enumerate(numbers)
        ]
    )


def one(table: pd.DataFrame) -> "pd.Series[float]":
    (row,) = [row for _, row in table.iterrows() if row["organ"] == "organ"]
    return row


LOST, BRIGHT = [10, 40, 20, 90, 50], [0.1, 0.4, 0.3, 0.8, 0.5]


def test_rho_and_p_are_those_of_all_orders_of_the_patients() -> None:
    taken, bright = ({f"p{n}": [one] for n, one in enumerate(numbers)} for numbers in (LOST, BRIGHT))
    row = one(associations(rows("a", taken), values("a", bright), unit="volume", empty="one"))
    assert row["rho"] == pytest.approx(spearmanr(BRIGHT, LOST).statistic)
    orders = [spearmanr(order, LOST).statistic for order in permutations(BRIGHT)]
    greater = np.mean([other >= row["rho"] - 1e-12 for other in orders])
    assert row["p"] == pytest.approx(2 * greater)
    assert row["over"] == "patients"
    assert row["n"] == 5
    assert row["low"] <= row["rho"] <= row["high"] <= 1


def test_scans_of_a_patient_are_one_point() -> None:
    """Ten more scans of one patient with the opposite trend change its mean alone."""
    taken = {f"p{n}": [lost] for n, lost in enumerate(LOST)} | {"p4": [95 - n for n in range(10)]}
    bright = {f"p{n}": [value] for n, value in enumerate(BRIGHT)} | {"p4": [0.90 + n / 100 for n in range(10)]}
    row = one(associations(rows("a", taken), values("a", bright), unit="volume", empty="one"))
    assert row["n"] == 5
    assert row["rho"] == pytest.approx(1.0)


def test_what_falls_with_a_factor_has_a_negative_rho() -> None:
    taken = {f"p{n}": [10 * n] for n in range(6)}
    bright = {f"p{n}": [1 - 0.1 * n] for n in range(6)}
    row = one(associations(rows("a", taken), values("a", bright), unit="volume", empty="one"))
    assert row["rho"] == pytest.approx(-1.0)
    assert row["p"] == pytest.approx(2 / 720)


def test_a_factor_of_the_model_is_correlated_over_models() -> None:
    sizes, lost = {"a": 1e3, "b": 1e4, "c": 1e5, "d": 1e6}, {"a": 5, "b": 10, "c": 30, "d": 80}
    tables = [rows(run, {f"p{n}": [lost[run] + n] for n in range(3)}) for run in sizes]
    factors = [values(run, {f"p{n}": [size] for n in range(3)}, "parameters") for run, size in sizes.items()]
    row = one(associations(pd.concat(tables), pd.concat(factors), unit="volume", empty="one"))
    assert (row["over"], row["n"], row["model"]) == ("models", 4, "")
    assert row["rho"] == pytest.approx(1.0)
    assert row["p"] == pytest.approx(2 / 24)


def test_controls_and_factors_that_are_the_same_everywhere_have_no_row() -> None:
    taken = {f"p{n}": [lost] for n, lost in enumerate(LOST)}
    same = values("a", {f"p{n}": [0.5] for n in range(5)})
    assert associations(rows("a", taken), same, unit="volume", empty="one").empty
    bright = values("a", {f"p{n}": [value] for n, value in enumerate(BRIGHT)})
    noise = rows("n", taken, "control", attack="noise")
    table = associations(pd.concat([rows("a", taken), noise]), pd.concat([bright, same]), unit="volume", empty="one")
    assert set(table["attack"]) == {"fgsm"}


def test_three_patients_have_no_correlation() -> None:
    taken = {f"p{n}": [10 * n] for n in range(3)}
    row = one(
        associations(rows("a", taken), values("a", {p: [n[0]] for p, n in taken.items()}), unit="volume", empty="one")
    )
    assert np.isnan([row["rho"], row["p"], row["low"], row["p_holm"]]).all()


def test_p_is_corrected_within_an_organ() -> None:
    taken = {f"p{n}": [10 * n] for n in range(6)}
    factors = [values("a", {p: [float(n[0])] for p, n in taken.items()}, name) for name in ("first", "second", "third")]
    table = associations(rows("a", taken), pd.concat(factors), unit="volume", empty="one")
    assert table["p_holm"].to_numpy() == pytest.approx(3 * table["p"].to_numpy())


def test_over_models_the_interval_draws_patients_and_every_organ_has_a_row() -> None:
    """Models whose order is the same in every patient: one who was not measured may have any other."""
    sizes, lost = {"a": 1e3, "b": 1e4, "c": 1e5, "d": 1e6}, {"a": 5, "b": 10, "c": 40, "d": 30}
    tables = [rows(run, {f"p{n}": [lost[run] + n] for n in range(3)}) for run in sizes]
    factors = [values(run, {f"p{n}": [size] for n in range(3)}, "parameters") for run, size in sizes.items()]
    table = associations(pd.concat(tables), pd.concat(factors), unit="volume", empty="one")
    assert table["organ"].tolist() == ["mean", "organ"]
    for row in table.to_dict("records"):
        assert (row["rho"], row["high"]) == pytest.approx((0.8, 1))
        assert -1 <= row["low"] < 0
    alone = [rows(run, {"p0": [lost[run]]}) for run in sizes]
    row = one(associations(pd.concat(alone), pd.concat(factors), unit="volume", empty="one"))
    assert row["rho"] == pytest.approx(0.8)
    assert np.isnan([row["low"], row["high"]]).all()  # of one patient
    three = one(associations(pd.concat(tables[:3]), pd.concat(factors[:3]), unit="volume", empty="one"))
    assert np.isnan([three["rho"], three["low"], three["high"], three["p"]]).all()


def test_no_interval_of_few_patients_is_a_point_however_alike_they_are() -> None:
    """Every draw of patients in one order has a correlation of 1, of 4 patients as of 80."""
    lows = []
    for n in (4, 8, 80):
        taken = {f"p{i}": [i] for i in range(n)}
        bright = {patient: [lost[0] / 10] for patient, lost in taken.items()}
        row = one(associations(rows("a", taken), values("a", bright), unit="volume", empty="one"))
        assert (row["rho"], row["high"]) == pytest.approx((1, 1))
        lows.append(row["low"])
    assert -1 <= lows[0] < lows[1] < lows[2] < 1
    assert lows[0] < 0 < lows[1]
    assert lows[2] > 0.8


def test_the_interval_of_a_falling_loss_is_the_mirror_image() -> None:
    rising, falling = (
        one(
            associations(
                rows("a", {f"p{i}": [lost[i]] for i in range(12)}),
                values("a", {f"p{i}": [i / 10] for i in range(12)}),
                unit="volume",
                empty="one",
            )
        )
        for lost in (list(range(12)), list(range(11, -1, -1)))
    )
    assert (falling["low"], falling["high"]) == pytest.approx((-rising["high"], -rising["low"]))


def test_four_patients_have_a_correlation_and_the_ends_are_quantiles_of_drawn_patients() -> None:
    taken = {f"p{n}": [lost] for n, lost in enumerate([10, 40, 20, 90])}
    bright = {f"p{n}": [value] for n, value in enumerate([0.1, 0.3, 0.4, 0.8])}
    row = one(associations(rows("a", taken), values("a", bright), unit="volume", empty="one"))
    assert row["rho"] == pytest.approx(0.8)
    assert (row["low"], row["high"]) == (-1.0, pytest.approx(1.0))


def test_organs_are_correlated_by_themselves_and_on_average() -> None:
    up = rows("a", {f"p{n}": [10 * n] for n in range(5)})
    down = rows("a", {f"p{n}": [40 - 10 * n] for n in range(5)}).assign(cls="other")
    steep = rows("a", {f"p{n}": [20 * n] for n in range(5)}).assign(cls="steep")
    bright = values("a", {f"p{n}": [0.1 * n] for n in range(5)})
    factors = pd.concat([bright.assign(cls=name) for name in ("organ", "other", "steep")])
    table = associations(pd.concat([up, down, steep]), factors, unit="volume", empty="one").set_index("organ")
    assert table["rho"].to_dict() == pytest.approx({"mean": 1.0, "organ": 1.0, "other": -1.0, "steep": 1.0})
    assert table["p_holm"].tolist() == table["p"].tolist()


def test_what_is_taken_from_everyone_alike_has_no_correlation() -> None:
    bright = values("a", {f"p{n}": [0.1 * n] for n in range(5)})
    row = one(associations(rows("a", {f"p{n}": [30] for n in range(5)}), bright, unit="volume", empty="one"))
    assert np.isnan([row["rho"], row["p"], row["low"], row["high"]]).all()


def test_a_factor_of_two_values_has_a_correlation() -> None:
    taken = {f"p{n}": [lost] for n, lost in enumerate(LOST)}
    bright = {f"p{n}": [float(n in (1, 3))] for n in range(5)}
    row = one(associations(rows("a", taken), values("a", bright), unit="volume", empty="one"))
    assert row["rho"] == pytest.approx(spearmanr([0, 1, 0, 1, 0], LOST).statistic)
    same = {f"p{n}": [40 if n in (1, 3) else 10] for n in range(5)}
    row = one(associations(rows("a", same), values("a", bright), unit="volume", empty="one"))
    assert row["rho"] == pytest.approx(1.0)


def test_ends_leave_a_fortieth_of_the_draws_on_either_side_and_those_without_a_correlation_out() -> None:
    draws = np.concatenate([np.arange(1001.0), np.full(500, np.nan)])
    assert _ends(draws[::-1], draws) == pytest.approx((25, 975))


def test_models_are_compared_under_an_attack_that_has_no_budget_too() -> None:
    sizes, lost = {"a": 1e3, "b": 1e4, "c": 1e5, "d": 1e6}, {"a": 5, "b": 10, "c": 30, "d": 80}
    tables = [rows(run, {f"p{n}": [lost[run] + n] for n in range(3)}, attack="cw", eps=np.nan) for run in sizes]
    factors = [values(run, {f"p{n}": [size] for n in range(3)}, "parameters") for run, size in sizes.items()]
    row = one(associations(pd.concat(tables), pd.concat(factors), unit="volume", empty="one"))
    assert (row["attack"], row["n"], row["rho"]) == ("cw", 4, pytest.approx(1.0))


def test_the_patient_who_was_not_measured_is_in_a_fifth_of_the_samples() -> None:
    for n in (4, 20, 100):
        draws = _draws(n)
        assert (draws.min(), draws.max()) == (0, n)
        counts = np.bincount(draws.ravel()) / len(draws)
        assert counts[:n] == pytest.approx(n / (n + UNMEASURED), abs=0.1)
        assert counts[n] == pytest.approx(n * UNMEASURED / (n + UNMEASURED), abs=0.05)
        assert (draws == n).any(1).mean() == pytest.approx(0.22, abs=0.04)
