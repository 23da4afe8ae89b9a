"""Visibility of runs: means over patients, refused where rows do not hold it."""

from pathlib import Path

import pandas as pd
import pytest
from helpers.command import medattack
from helpers.runs import dice_of, write_run

from medseg_attack.errors import InputError
from medseg_attack.stats.visible_changes import visible


def rows() -> pd.DataFrame:
    """One patient with two slices, another with one; each row twice, as of two organs."""
    each = pd.DataFrame(
        {
            "run": "a",
            "group": ["p", "p", "q"],
            "case": ["p1", "p2", "q1"],
            "ssim": [0.8, 0.6, 0.9],
            "ssim_body": [0.8, 0.8, 0.8],
            "ssim_min": [0.5, 0.4, 0.7],
            "psnr": [40.0, 40.0, 40.0],
            "noise_units": [1.0, 2.0, 3.0],
        }
    )
    return pd.concat([each.assign(cls="liver"), each.assign(cls="spleen")], ignore_index=True)


def test_patients_count_alike_whatever_their_number_of_slices() -> None:
    (table,) = visible(rows()).to_dict("records")
    assert table["ssim"] == pytest.approx((0.7 + 0.9) / 2)
    assert table["noise_units"] == pytest.approx((1.5 + 3) / 2)
    assert table["ssim_min"] == 0.4


def test_a_slice_that_nothing_changed_leaves_a_finite_psnr() -> None:
    table = rows()
    table["psnr"] = table["case"].map({"p1": float("inf"), "p2": 40.0, "q1": 40.0})
    (result,) = visible(table).to_dict("records")
    assert 10 ** (-result["psnr"] / 10) == pytest.approx(0.75e-4)
    table["psnr"] = float("inf")
    assert visible(table)["psnr"].tolist() == [float("inf")]


def test_runs_that_do_not_know_it_are_refused() -> None:
    with pytest.raises(InputError, match="attack again"):
        visible(rows().drop(columns="psnr"))


def test_compare_prints_it_beside_the_drop(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", dice_of(0, 6), eps=0.01)
    printed = medattack("compare", tmp_path / "runs", "--visibility", "--markdown").stdout
    assert "| unet | fgsm | bce | 0.01 |" in printed.replace("\\", "")
    assert "| 0.990 | 0.980 | 0.970 | 40.0 | 1.00 |" in printed.replace("\\", "")
