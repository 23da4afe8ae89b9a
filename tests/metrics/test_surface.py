"""Surface distances against all pairs of surface pixels, in 2-D and 3-D, and every row of the table of empty masks."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from medseg_attack.errors import InputError
from medseg_attack.metrics import empty
from medseg_attack.metrics.empty import Empty
from medseg_attack.metrics.scans import by_scan, diagonals_mm, packed
from medseg_attack.metrics.surface import assd_mm, hd95_mm, nsd
from medseg_attack.stats.clinical import deltas
from medseg_attack.types import Case, Stack, Window

Mask = NDArray[np.bool_]
Spacing = tuple[float, ...]


def surface_mm(mask: Mask, spacing: Spacing) -> NDArray[np.float64]:
    """Places in mm of the pixels that have a face neighbour outside of the mask or of the grid."""

    def is_inside(pixel: Sequence[int]) -> bool:
        return all(0 <= i < n for i, n in zip(pixel, mask.shape, strict=True)) and bool(mask[tuple(pixel)])

    border = []
    for pixel in np.argwhere(mask):
        neighbours = [pixel + step * axis for axis in np.eye(mask.ndim, dtype=int) for step in (-1, 1)]
        if not all(is_inside(neighbour) for neighbour in neighbours):
            border.append(pixel * np.array(spacing))
    return np.array(border)


def directed_mm(one: Mask, other: Mask, spacing: Spacing) -> NDArray[np.float64]:
    """From each surface pixel of one mask the distance to the nearest of the other, by trying all."""
    pairs = surface_mm(one, spacing)[:, None] - surface_mm(other, spacing)[None]
    return np.asarray(np.linalg.norm(pairs, axis=2).min(1))


def oracle(pred: Mask, target: Mask, spacing: Spacing, tolerance_mm: float) -> tuple[float, float, float]:
    """HD95, ASSD and NSD from their definitions."""
    there, back = directed_mm(pred, target, spacing), directed_mm(target, pred, spacing)
    both = np.concatenate([there, back])
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return float(hd95), float(both.mean()), float((both <= tolerance_mm).mean())


def blob(shape: tuple[int, ...], seed: int) -> Mask:
    """A ragged ellipsoid, at the edge of the grid for some seeds."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    middle, radius = rng.uniform(0.2, 0.8, len(shape)) * shape, rng.uniform(0.2, 0.5, len(shape)) * shape
    wide = (slice(None), *[None] * len(shape))
    mask: Mask = (((grid - middle[wide]) / radius[wide]) ** 2).sum(0) < 1
    return mask & (rng.random(shape) > 0.1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((14, 11), (1.0, 1.0)), ((14, 11), (0.7, 2.3)), ((6, 9, 8), (1.0, 1.0, 1.0)), ((6, 9, 8), (5.0, 0.8, 1.3))],
    ids=["2-D", "2-D anisotropic", "3-D", "3-D anisotropic"],
)
def test_distances_are_those_between_all_pairs(shape: tuple[int, ...], spacing: Spacing, seed: int) -> None:
    pred, target = blob(shape, 2 * seed), blob(shape, 2 * seed + 1)
    args = torch.from_numpy(pred)[None, None], torch.from_numpy(target)[None, None], [spacing]
    distances = hd95_mm(*args).item(), assd_mm(*args).item(), nsd(*args, tolerance_mm=1.1).item()
    assert distances == pytest.approx(oracle(pred, target, spacing, 1.1), rel=1e-5)


TRUTH = torch.zeros(1, 1, 3, 4, 5, dtype=torch.bool)
TRUTH[..., 1:3, 1:3] = True
NOTHING = torch.zeros_like(TRUTH)
SPACING = (5.0, 2.0, 1.0)
STATES = {"absent": (NOTHING, NOTHING), "hallucinated": (TRUTH, NOTHING), "missed": (NOTHING, TRUTH)}
VOLUME_ML = TRUTH.sum().item() * math.prod(SPACING) / 1000


def of_row(name: str, state: str, rule: Empty, clean: bool) -> float:
    """The measure of that name where prediction and truth are as in `state`; `clean`: was something found before."""
    pred, target = STATES[state]
    if name in ("hd95_mm", "assd_mm", "nsd"):
        metric = {"hd95_mm": hd95_mm, "assd_mm": assd_mm, "nsd": nsd}[name]
        return float(metric(pred, target, [SPACING]).item())
    before = TRUTH if clean else NOTHING
    row: dict[str, Any] = {
        "run": "r",
        "case": "s",
        "volume": "v",
        "group": "p",
        "cls": "organ",
        "n_target": int(target.sum()),
        "n_clean": int(before.sum()),
        "hit_clean": int((before & target).sum()),
        "n_adv": int(pred.sum()),
        "hit_adv": 0,
        "n_target_adv": int(target.sum()),
        "z_mm": 5.0,
        "y_mm": 2.0,
        "x_mm": 1.0,
    }
    row |= {f"{axis}_{when}": 9 for axis in "zyx" for when in ("clean", "adv")}
    column = {"dice": "dice_adv", "iou": "iou_adv", "volume_ml": "volume_ml_adv"}.get(name, name)
    return float(deltas(pd.DataFrame([row]), empty=rule)[column].iloc[0])


MEANT = {empty.LEFT_OUT: math.nan, empty.DIAGONAL: math.dist((0, 0, 0), (15, 8, 5)), "0": 0.0, "as counted": VOLUME_ML}


@pytest.mark.parametrize(
    ("name", "state", "rule", "clean"), list(product(empty.RULES, STATES, ("one", "nan", "zero"), (True, False)))
)
def test_every_row_of_the_table_of_empty_masks(name: str, state: str, rule: Empty, clean: bool) -> None:
    said = getattr(empty.RULES[name], state)
    if said == empty.BY_OPTION:
        expected = {"one": 1.0, "nan": math.nan, "zero": 0.0}[rule]
    elif said == "0, left out under --empty nan":
        expected = math.nan if rule == "nan" else 0.0
    elif said.endswith(empty.CLEAN_EMPTY):
        there = {"volume_percent": 0.0 if state == "hallucinated" else -100.0, "centroid_shift_mm": 0.0}[name]
        expected = there if clean else math.nan
    else:
        expected = MEANT[said]
    assert of_row(name, state, rule, clean) == pytest.approx(expected, nan_ok=True)


def lines(gap: int, spur: int = 0, n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Two lines of n pixels, `gap` rows apart; the first with a pixel that lies `spur` rows further off."""
    pred, target = torch.zeros(2, 1, 1, n, n, dtype=torch.bool)
    pred[..., 2, :] = target[..., 2 + gap, :] = True
    pred[..., 2 + spur, 7] = True
    return pred, target


@pytest.mark.parametrize(("gap", "spur", "hd95", "assd"), [(0, 0, 0, 0), (3, 0, 6, 6), (0, 20, 0, 40 / 81)])
def test_one_pixel_in_forty_moves_no_95th_percentile(gap: int, spur: int, hd95: float, assd: float) -> None:
    masks = lines(gap, spur)
    assert hd95_mm(*masks, [(2.0, 1.0)]).item() == pytest.approx(hd95)
    assert assd_mm(*masks, [(2.0, 1.0)]).item() == pytest.approx(assd)


@pytest.mark.parametrize(
    ("tolerance", "gap", "share"), [({}, 2, 1), ({}, 3, 0), ({"tolerance_mm": 1}, 1, 1), ({"tolerance_mm": 1}, 2, 0)]
)
def test_the_tolerance_of_nsd_is_two_mm_or_what_was_asked(tolerance: Any, gap: int, share: float) -> None:
    assert nsd(*lines(gap), [(1.0, 1.0)], **tolerance).item() == share


def slices_of(scan: torch.Tensor, order: Sequence[int], missing: bool = False) -> list[Case]:
    """The slices of a scan, (slices, rows, columns), in that order."""
    stacks = [Stack(n, len(scan) + missing, 4.0) for n in order]
    return [
        Case(f"s{n}", "scan", "p", scan[n][None].float(), scan[n][None], (1.0, 2.0), Window(0, 1), stack)
        for n, stack in zip(order, stacks, strict=True)
    ]


def test_a_scan_is_measured_in_the_order_of_its_slices_whatever_theirs() -> None:
    pred, target = (torch.from_numpy(blob((7, 9, 8), seed)) for seed in (3, 4))
    (expected,) = hd95_mm(pred[None, None], target[None, None], [(4.0, 1.0, 2.0)])[0].tolist()
    for order in ([0, 1, 2, 3, 4, 5, 6], [4, 0, 6, 2, 5, 1, 3]):
        bits = [[packed(scan[n][None, None])[0] for n in order] for scan in (pred, target)]
        by_class = by_scan({"hd95": hd95_mm}, slices_of(target, order), *bits, ["organ"])
        assert by_class == {("scan", "organ"): {"hd95": pytest.approx(expected)}}
    lacking = by_scan({"hd95": hd95_mm}, slices_of(target, order, missing=True), *bits, ["organ"])
    assert math.isnan(lacking["scan", "organ"]["hd95"])  # a slice was not attacked


def test_no_distance_is_longer_than_the_diagonal_and_a_missed_organ_is_as_far() -> None:
    target = torch.from_numpy(blob((7, 9, 8), 3))
    cases = slices_of(target, [2, 0, 1, 3, 4, 5, 6])
    (missed,) = hd95_mm(torch.zeros_like(target)[None, None], target[None, None], [(4.0, 1.0, 2.0)])[0].tolist()
    assert diagonals_mm(cases) == {"scan": pytest.approx(missed)}
    assert math.isnan(diagonals_mm(cases[1:])["scan"])
    for flat in (replace(cases[0], stack=None), replace(cases[0], stack=Stack(0, 1, 4.0))):
        (missed,) = hd95_mm(torch.zeros(1, 1, 9, 8).bool(), flat.target[None], [(1.0, 2.0)])[0].tolist()
        assert diagonals_mm([flat]) == {"scan": pytest.approx(missed)}


def test_a_scan_of_one_slice_is_flat_and_one_of_two_is_not() -> None:
    """In 3-D every pixel of a single slice lies on the surface; in 2-D those within do not."""
    pred, target = (torch.from_numpy(np.stack([blob((9, 8), n), blob((9, 8), n + 1)])) for n in (3, 5))  # two classes
    flat = assd_mm(pred[None], target[None], [(3.0, 1.0)])[0].tolist()
    alone = Case("one", "one", "p", target[:1].float(), target, (3.0, 1.0), Window(0, 1))
    single = replace(alone, id="two", volume="two", stack=Stack(0, 1, 9.0))
    bits = [packed(mask[None]) * 2 for mask in (pred, target)]
    names = ["first", "second"]
    by_class = by_scan({"assd": assd_mm}, [alone, single], *bits, names)
    for volume in ("one", "two"):
        assert [by_class[volume, cls]["assd"] for cls in names] == pytest.approx(flat)

    pair = [replace(alone, id=f"s{n}", volume="v", stack=Stack(n, 2, 9.0)) for n in range(2)]
    both = [packed(torch.stack([mask, mask.flip(1)])) for mask in (pred, target)]
    solid = [torch.stack([mask, mask.flip(1)], 1)[None] for mask in (pred, target)]
    expected = assd_mm(*solid, [(9.0, 3.0, 1.0)])[0].tolist()
    by_class = by_scan({"assd": assd_mm}, pair, *both, names)
    assert [by_class["v", cls]["assd"] for cls in names] == pytest.approx(expected)


def test_each_sample_has_its_own_spacing_and_each_class_its_own_gaps() -> None:
    pred, target = torch.zeros(2, 2, 2, 6, 6, dtype=torch.bool)
    pred[:, 0, 1], target[:, 0, 4] = True, True  # three rows apart
    target[:, 1, 2] = True  # missed
    spacings = [(2.0, 1.0), (5.0, 1.0)]
    diagonals = [math.hypot(12, 6), math.hypot(30, 6)]
    for metric, missed in ((hd95_mm, diagonals), (assd_mm, diagonals), (nsd, [0.0, 0.0])):
        values = metric(pred, target, spacings)
        near = [6.0, 15.0] if metric is not nsd else [0.0, 0.0]
        assert values[:, 0].tolist() == pytest.approx(near)
        assert values[:, 1].tolist() == pytest.approx(missed)


@pytest.mark.parametrize("tolerance", [-0.1, math.inf, math.nan])
def test_a_tolerance_is_a_length(tolerance: float) -> None:
    with pytest.raises(InputError, match="tolerance_mm"):
        nsd(*lines(1), [(1.0, 1.0)], tolerance_mm=tolerance)


def test_a_tolerance_of_0_asks_for_the_same_pixels() -> None:
    assert nsd(*lines(0), [(1.0, 1.0)], tolerance_mm=0).item() == 1
    assert nsd(*lines(1), [(1.0, 1.0)], tolerance_mm=0).item() == 0
