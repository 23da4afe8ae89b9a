"""Counts of masks by name, one copy for several pairs of them, and Dice and IoU under each rule for empty masks."""

import math

import pytest
import torch

from medseg_attack.metrics.counts import Overlap
from medseg_attack.metrics.harm import harm, summed
from medseg_attack.metrics.overlap import dice, dice_of, iou, measure


def drawn(*rows: str) -> torch.Tensor:
    return torch.tensor([[pixel == "x" for pixel in row] for row in rows])[None, None]


def test_an_overlap_says_what_it_counts() -> None:
    pred, target = drawn(".xx", "..x"), drawn("xxx", "x..")
    assert measure((pred, target)) == [[[Overlap(target=4, pred=3, hit=2, index_sums=(0, 1, 5))]]]


def test_slices_are_the_first_axis_of_a_volume() -> None:
    volume = torch.stack([drawn("x.", ".."), drawn("..", ".x"), drawn("..", "x.")], dim=2)
    ((((overlap,),),)) = measure((volume, volume))
    assert overlap == Overlap(target=3, pred=3, hit=3, index_sums=(3, 2, 1))


def test_several_pairs_are_measured_as_each_alone() -> None:
    random = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.rand(2, 3, 5, 4, generator=random) > 0.5 for _ in range(4))
    assert measure((a, b), (c, d)) == [*measure((a, b)), *measure((c, d))]


def test_dice_and_iou_by_class() -> None:
    pred, target = drawn(".xx", "..x"), drawn("xxx", "x..")
    assert dice(pred, target, empty=1.0).item() == pytest.approx(2 * 2 / (3 + 4))
    assert iou(pred, target, empty=1.0).item() == pytest.approx(2 / 5)
    assert dice(pred, target, empty=1.0, dtype=torch.float64).item() == 4 / 7
    assert dice_of(torch.tensor([4, 3, 2]), empty=1.0, dtype=torch.float64).item() == 4 / 7


@pytest.mark.parametrize("score", [dice, iou])
@pytest.mark.parametrize("empty", [0.0, 1.0, math.nan])
def test_the_rule_for_empty_masks_decides_where_both_are_empty_alone(score, empty: float) -> None:
    full, nothing = drawn("xx"), drawn("..")
    assert score(nothing, nothing, empty=empty).item() == pytest.approx(empty, nan_ok=True)
    assert score(full, nothing, empty=empty).item() == score(nothing, full, empty=empty).item() == 0.0
    assert score(full, full, empty=empty).item() == 1.0


def test_harm_is_what_dice_lacks_and_an_organ_that_neither_has_is_right() -> None:
    target = torch.zeros(2, 2, 4, 4, dtype=torch.bool)
    target[0, 0, :2], target[1] = True, True
    pred = target.clone()
    assert harm(pred, target).tolist() == [0.0, 0.0]
    pred[0, 0] = False
    pred[1, 0, 2:] = False
    assert harm(pred, target).tolist() == pytest.approx([0.5, (1 / 3) / 2])


def test_one_pixel_is_a_whole_organ() -> None:
    pixel, nothing = drawn("..x"), drawn("...")
    assert iou(pixel, pixel, empty=0.0).item() == dice(pixel, pixel, empty=0.0).item() == 1.0
    assert iou(pixel, nothing, empty=1.0).item() == dice(pixel, nothing, empty=1.0).item() == 0.0


def test_counts_of_slices_add_up_to_those_of_their_volumes() -> None:
    values = torch.tensor([[1, 2], [3, 4], [5, 6]])
    assert summed(values, torch.tensor([1, 0, 1])).tolist() == [[3, 4], [6, 8], [0, 0]]
