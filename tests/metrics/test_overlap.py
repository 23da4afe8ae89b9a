"""Counts of masks by name, and one copy for several pairs of them."""

import torch

from medseg_attack.metrics.counts import Overlap
from medseg_attack.metrics.overlap import measure


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
