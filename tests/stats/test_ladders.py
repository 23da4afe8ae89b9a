"""Natural corruptions: means, degradation and errors beside another model, by hand."""

import math

import pandas as pd
import pytest

from medseg_attack.report.side_tables.ladders import ladder_sheet
from medseg_attack.stats.ladders import has_corruptions, ladders


def summary(**dice: list[float]) -> pd.DataFrame:
    """Two kinds at severities 1 and 5 per model, clean Dice 0.9."""
    rows = []
    for model, values in dice.items():
        cells = [(kind, eps) for kind in ("motion", "pixelate") for eps in (1.0, 5.0)]
        for (kind, eps), value in zip(cells, values, strict=True):
            attack = f"corruption(kind='{kind}')"
            rows.append({"model": model, "data": "toy", "attack": attack, "eps": eps, "mean_adv": value})
        rows.append({"model": model, "data": "toy", "attack": "fgsm", "eps": 0.01, "mean_adv": 0.1})
    return pd.DataFrame(rows).assign(mean_clean=0.9)


def test_the_mean_is_over_kinds_and_severities() -> None:
    table = ladders(summary(a=[0.8, 0.6, 0.9, 0.5])).set_index("kind")
    assert table.loc["mri motion", "dice"] == pytest.approx(0.7)
    assert table.loc["all", "dice"] == pytest.approx(0.7)
    assert table.loc["all", "least"] == 0.5
    assert table.loc["mri motion", "degradation"] == pytest.approx(1 - 0.7 / 0.9)
    assert table.loc["all", "severities"] == 2
    assert table.loc["all", "error"] == 1  # of the model itself


def test_errors_are_shares_of_those_of_the_first_model() -> None:
    table = ladders(summary(a=[0.8, 0.6, 0.9, 0.5], b=[0.9, 0.8, 0.9, 0.7])).set_index(["model", "kind"])
    assert table.loc[("b", "mri motion"), "error"] == pytest.approx(0.3 / 0.6)
    assert table.loc[("b", "mri motion"), "relative_error"] == pytest.approx(0.1 / 0.4)
    assert table.loc[("b", "mri pixelate"), "error"] == pytest.approx(0.4 / 0.6)
    assert table.loc[("b", "all"), "error"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert table.loc[("b", "all"), "relative_error"] == pytest.approx((0.25 + 0.5) / 2)
    sheet = ladder_sheet(table.reset_index())
    assert sheet.columns[-2:] == ["error", "relative"]
    assert "of that of a" in sheet.caption


def test_a_severity_that_the_first_model_lacks_leaves_no_error() -> None:
    rows = summary(a=[0.8, 0.6, 0.9, 0.5], b=[0.9, 0.8, 0.9, 0.7])
    rows = rows.drop(index=1)  # motion at severity 5 of a
    table = ladders(rows).set_index(["model", "kind"])
    assert math.isnan(table.loc[("b", "mri motion"), "error"])
    assert math.isnan(table.loc[("b", "all"), "error"])
    assert table.loc[("b", "mri pixelate"), "error"] == pytest.approx(0.4 / 0.6)


def test_other_runs_have_no_ladder() -> None:
    rows = summary(a=[0.8, 0.6, 0.9, 0.5])
    assert has_corruptions(rows)
    assert not has_corruptions(rows[rows["attack"] == "fgsm"])


def test_the_severities_of_all_kinds_are_the_most_of_a_kind() -> None:
    table = ladders(summary(a=[0.8, 0.6, 0.9, 0.5]).drop(index=1)).set_index("kind")
    assert table["severities"].to_dict() == {"mri motion": 1, "mri pixelate": 2, "all": 2}
    assert table.loc["all", "dice"] == pytest.approx((0.8 + 0.7) / 2)
    assert table.loc["all", "clean"] == pytest.approx(0.9)


def test_a_first_model_that_loses_nothing_leaves_no_relative_error() -> None:
    table = ladders(summary(a=[0.9] * 4, b=[0.9, 0.8, 0.9, 0.7])).set_index(["model", "kind"])
    assert math.isnan(table.loc[("b", "mri motion"), "relative_error"])
    assert table.loc[("b", "mri motion"), "error"] == pytest.approx(0.3 / 0.2)
    perfect = summary(a=[1.0] * 4, b=[0.9] * 4)
    assert math.isnan(ladders(perfect).set_index(["model", "kind"]).loc[("b", "mri motion"), "error"])
