"""Ejection fractions from volumes worked by hand, and the thresholds that they cross."""

import numpy as np
import pandas as pd
import pytest

from medseg_attack.stats.clinical import ejection_summary, ejections

PHASES = {("r", f"p{n}_{phase}"): phase for n in range(9) for phase in ("ED", "ES")}


def deltas(*patients: tuple[tuple[float, float], tuple[float, float]]) -> pd.DataFrame:
    """Clean and attacked (EDV, ESV) of each patient; the truth is the clean one."""
    rows = []
    for n, (clean, attacked) in enumerate(patients):
        for k, phase in enumerate(("ED", "ES")):
            volumes = {"volume_ml_target": clean[k], "volume_ml_clean": clean[k], "volume_ml_adv": attacked[k]}
            rows.append({"run": "r", "group": f"p{n}", "volume": f"p{n}_{phase}", "cls": "lv"} | volumes)
            rows.append(rows[-1] | {"cls": "rv", "volume_ml_adv": 1.0})
    return pd.DataFrame(rows)


def test_the_fraction_of_volumes_that_move_against_each_other() -> None:
    """EDV 120, ESV 50: 0.583; 5 % down and 5 % up: 0.539; 10 %: 0.491."""
    five, ten = (114.0, 52.5), (108.0, 55.0)
    table = ejections(deltas(((120, 50), five), ((120, 50), ten)), PHASES, "lv")
    assert table["clean"].tolist() == pytest.approx([58.333, 58.333], abs=1e-3)
    assert table["adv"].tolist() == pytest.approx([53.947, 49.074], abs=1e-3)
    assert table["change"].tolist() == pytest.approx([-4.386, -9.259], abs=1e-3)


def test_an_erased_ventricle_counts() -> None:
    table = ejections(deltas(((100, 40), (0, 40)), ((100, 40), (100, 0))), PHASES, "lv")
    assert table["adv"].tolist() == [0.0, 100.0]


def test_a_patient_without_both_phases_is_left_out() -> None:
    both = deltas(((100, 40), (90, 45)), ((100, 40), (90, 45)))
    assert ejections(both[both["volume"] != "p1_ES"], PHASES, "lv")["group"].tolist() == ["p0"]
    assert ejections(both, {}, "lv").empty
    one_phase = both[both["volume"].str.endswith("ED")]
    assert ejections(one_phase, PHASES, "lv").empty


def test_limits_and_thresholds() -> None:
    patients = [((100, 45), (100, 55)), ((100, 45), (100, 50)), ((100, 62), (100, 66)), ((100, 20), (100, 30))]
    (row,) = ejection_summary(ejections(deltas(*patients), PHASES, "lv")).to_dict("records")
    changes = np.array([-10.0, -5.0, -4.0, -10.0])
    assert row["change"] == pytest.approx(changes.mean())
    assert row["agreement_high"] - row["change"] == pytest.approx(1.96 * changes.std(ddof=1))
    assert row["agreement_low"] < row["low"] < row["change"] < row["high"]
    assert (row["crossed_35"], row["crossed_40"], row["crossed_50"]) == (0.25, 0.0, 0.25)  # 38 -> 34; 55 -> 45, not 50
    assert row["crossed_40_low"] == pytest.approx(0.0)
    assert 0.25 < row["crossed_35_high"] < 1
    assert row["patients"] == 4
