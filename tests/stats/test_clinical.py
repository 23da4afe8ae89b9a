"""Clinical deltas worked out by hand, and against the masks that they are about."""

import numpy as np
import pandas as pd
import pytest
import torch

from medseg_attack.metrics.overlap import counts, index_sums
from medseg_attack.report.clinical import delta_sheet
from medseg_attack.stats.clinical import delta_summary, deltas

SPACING = (5.0, 2.0, 1.0)


def rows_of(
    target: torch.Tensor,
    clean: torch.Tensor,
    adv: torch.Tensor,
    *,
    volume: str = "v",
    z_mm: float = 5.0,
    hd95: tuple[float, float] = (1.0, 3.0),
) -> pd.DataFrame:
    """A row per slice of masks (slices, rows, columns), as the loop makes them."""
    parts = []
    for i in range(len(target)):
        one = {"run": "r", "case": f"{volume}_{i}", "volume": volume, "group": "p", "cls": "organ"}
        for when, mask in (("clean", clean), ("adv", adv)):
            n_target, n, hit = counts(mask[i][None, None], target[i][None, None])[0, 0].tolist()
            _, y, x = index_sums(mask[i][None, None])[0, 0].tolist()
            one |= {"n_target": n_target, "n_target_adv": n_target, f"n_{when}": n, f"hit_{when}": hit}
            one |= {f"z_{when}": i * n, f"y_{when}": y, f"x_{when}": x}
        one |= {"z_mm": z_mm, "y_mm": 2.0, "x_mm": 1.0, "hd95_mm_clean": hd95[0], "hd95_mm_adv": hd95[1]}
        parts.append(one)
    return pd.DataFrame(parts)


def box(*at: slice) -> torch.Tensor:
    mask = torch.zeros(4, 10, 12, dtype=torch.bool)
    mask[at] = True
    return mask


BEFORE = box(slice(0, 2), slice(0, 4), slice(0, 4))
AFTER = box(slice(1, 3), slice(3, 7), slice(2, 6))  # one slice, three rows and two columns further
NOTHING = box(slice(0, 0))


def test_a_moved_organ_is_moved_by_so_many_mm() -> None:
    row = deltas(rows_of(BEFORE, BEFORE, AFTER), empty="one").iloc[0]
    assert row["centroid_shift_mm"] == pytest.approx((5**2 + 6**2 + 2**2) ** 0.5)
    assert row["volume_ml_clean"] == pytest.approx(32 * 10 / 1000)
    assert (row["volume_ml"], row["volume_percent"]) == pytest.approx((0, 0))
    assert (row["hd95_mm_clean"], row["hd95_mm_adv"]) == (1.0, 3.0)
    assert (row["dice_clean"], row["dice_adv"]) == pytest.approx((1.0, 2 * 2 / 64))


def test_the_centroid_is_that_of_the_masks() -> None:
    masks = torch.rand(3, 4, 10, 12, generator=torch.Generator().manual_seed(0)) < 0.2
    row = deltas(rows_of(*masks), empty="one").iloc[0]
    places = [np.argwhere(mask.numpy()) * SPACING for mask in masks[1:]]
    assert row["centroid_shift_mm"] == pytest.approx(np.linalg.norm(places[1].mean(0) - places[0].mean(0)))
    change = (len(places[1]) - len(places[0])) * np.prod(SPACING) / 1000
    assert row["volume_ml"] == pytest.approx(change)
    assert row["volume_percent"] == pytest.approx(100 * (len(places[1]) / len(places[0]) - 1))


def test_without_a_slice_thickness_there_are_percent_but_no_ml() -> None:
    row = deltas(rows_of(BEFORE[:1], BEFORE[:1], AFTER[1:2], z_mm=float("nan")), empty="one").iloc[0]
    assert np.isnan(row["volume_ml_adv"])
    assert row["volume_percent"] == 0
    assert row["centroid_shift_mm"] == pytest.approx((6**2 + 2**2) ** 0.5)


@pytest.mark.parametrize(
    ("target", "pred", "state"),
    [
        (BEFORE, AFTER, "ok"),
        (BEFORE, NOTHING, "missed"),
        (NOTHING, AFTER, "hallucinated"),
        (NOTHING, NOTHING, "absent"),
    ],
)
def test_an_organ_is_in_one_of_four_states(target: torch.Tensor, pred: torch.Tensor, state: str) -> None:
    row = deltas(rows_of(target, target, pred), empty="one").iloc[0]
    assert row["state_adv"] == state
    assert row["state_clean"] == ("ok" if target.any() else "absent")


def test_a_summary_counts_what_the_attack_lost_and_made_up() -> None:
    scans = [
        (BEFORE, BEFORE, NOTHING),  # lost by the attack
        (BEFORE, NOTHING, NOTHING),  # lost before
        (NOTHING, NOTHING, AFTER),  # made up by the attack
        (NOTHING, AFTER, AFTER),  # made up before
        (BEFORE, BEFORE, AFTER),
    ]
    rows = pd.concat([rows_of(*masks, volume=f"v{i}") for i, masks in enumerate(scans)])
    row = delta_summary(deltas(rows, empty="one")).iloc[0]
    assert (row["missed"], row["hallucinated"], row["scans"], row["patients"]) == (1, 1, 5, 1)
    assert row["volume_percent"] == pytest.approx(np.mean([-100, 0, 0]))  # of the scans with a clean prediction
    header = pd.DataFrame({"model": ["m"], "attack": ["fgsm"], "loss": ["bce"], "eps": [0.01]}, index=["r"])
    sheet = delta_sheet(delta_summary(deltas(rows, empty="one")), header)
    assert sheet.columns == ["organ", "run", "Dice", "HD95 mm", "ml", "change %", "shift mm", "missed", "halluc."]
    assert [row[:2] for row in sheet.rows] == [["organ", "clean"], ["organ", "fgsm bce 0.01"]]
    assert [row[3] for row in sheet.rows] == ["1.0", "3.0"]
    assert sheet.rows[1][-2:] == ["1", "1"]


def test_a_scans_distance_is_not_counted_once_per_slice() -> None:
    long = rows_of(BEFORE, BEFORE, AFTER, volume="long", hd95=(0.0, 10.0))
    short = rows_of(BEFORE[:1], BEFORE[:1], BEFORE[:1], volume="short", hd95=(0.0, 0.0))
    assert delta_summary(deltas(pd.concat([long, short]), empty="one")).iloc[0]["hd95_mm_adv"] == 5.0


def test_a_volume_is_of_voxels_and_less_what_the_organ_itself_grew_by() -> None:
    rows = rows_of(BEFORE, BEFORE, AFTER).assign(x_mm=0.5)
    row = deltas(rows, empty="one").iloc[0]
    assert row["volume_ml_adv"] == pytest.approx(32 * 5 * 2 * 0.5 / 1000)
    grown = rows.assign(n_target_adv=rows["n_target"] + 2, n_adv=rows["n_adv"] + 3)  # 4 slices: by 8 and by 12
    row = deltas(grown, empty="one").iloc[0]
    assert row["volume_percent"] == pytest.approx(100 * (12 - 8) / 32)
    assert row["volume_ml"] == pytest.approx(4 * 5 / 1000)


def test_one_pixel_of_an_organ_is_an_organ() -> None:
    pixel = box(slice(1, 2), slice(2, 3), slice(3, 4))
    row = deltas(rows_of(pixel, pixel, NOTHING), empty="one").iloc[0]
    assert (row["state_clean"], row["state_adv"], row["volume_percent"]) == ("ok", "missed", -100)
    moved = deltas(rows_of(pixel, pixel, pixel.roll(2, 1)), empty="one").iloc[0]
    assert moved["centroid_shift_mm"] == pytest.approx(4.0)
    assert np.isnan(deltas(rows_of(pixel, NOTHING, pixel), empty="one").iloc[0]["volume_percent"])


def test_what_was_lost_or_made_up_before_the_attack_is_not_counted() -> None:
    scans = [(BEFORE, BEFORE, NOTHING)] * 3 + [(BEFORE, NOTHING, NOTHING)]
    scans += [(NOTHING, NOTHING, AFTER)] * 2 + [(NOTHING, AFTER, AFTER)] * 4
    rows = pd.concat([rows_of(*masks, volume=f"v{i}") for i, masks in enumerate(scans)])
    row = delta_summary(deltas(rows, empty="one")).iloc[0]
    assert (row["missed"], row["hallucinated"], row["scans"]) == (3, 2, 10)
