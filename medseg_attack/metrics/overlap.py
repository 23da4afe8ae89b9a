"""Pixel counts and sums of pixel positions, from which overlap, volume and centroid are derived later and exactly."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from medseg_attack.metrics.counts import Overlap
from medseg_attack.numerics.slabs import SLAB, sum_of_slabs
from medseg_attack.types import Mask


def measure(*pairs: tuple[Mask, Mask]) -> list[list[list[Overlap]]]:
    """The overlap of each pair of prediction and truth, by pair, case and class, in one copy from the device."""
    numbers = [torch.cat([counts(pred, target), index_sums(pred)], dim=-1) for pred, target in pairs]
    return [
        [[Overlap(target, pred, hit, (z, y, x)) for target, pred, hit, z, y, x in case] for case in pair]
        for pair in torch.stack(numbers).tolist()
    ]


def counts(pred: Mask, target: Mask) -> Int[Tensor, "b k 3"]:
    """Pixels in the truth, in the prediction and in both, per sample and class."""
    return sum_of_slabs(_counts, pred, target)  # a sum of masks takes several bytes a pixel


def _counts(pred: Mask, target: Mask) -> Int[Tensor, "b k 3"]:
    pred, target = pred.flatten(2), target.flatten(2)
    masks = (mask.view(torch.uint8) for mask in (target, pred, pred & target))
    # sums of 32 bits take half the time of those of 64; a slab has far fewer pixels than they can count
    return torch.stack([mask.sum(2, dtype=torch.int32) for mask in masks], dim=-1).long()


def dice(pred: Mask, target: Mask, *, empty: float, dtype: torch.dtype = torch.float32) -> Float[Tensor, "b k"]:
    """Dice of hard masks, per sample and class; see `dice_of`."""
    return dice_of(counts(pred, target), empty=empty, dtype=dtype)


def dice_of(pixels: Shaped[Tensor, "*n 3"], *, empty: float, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*n"]:
    """Dice from pixels in the truth, in the prediction and in both.

    Args:
        empty: the score where neither mask holds a pixel, as in `empty.ABSENT_SCORE`: 1, 0, or NaN for a class
            that is left out.
    """
    n_target, n_pred, hit = pixels.unbind(-1)
    return _ratio(2 * hit, n_target + n_pred, empty, dtype)


def iou(pred: Mask, target: Mask, *, empty: float, dtype: torch.dtype = torch.float32) -> Float[Tensor, "b k"]:
    """Intersection over union of hard masks, per sample and class; `empty` as in `dice_of`."""
    n_target, n_pred, hit = counts(pred, target).unbind(-1)
    return _ratio(hit, n_target + n_pred - hit, empty, dtype)


def _ratio(part: Tensor, whole: Tensor, empty: float, dtype: torch.dtype) -> Tensor:
    return torch.where(whole > 0, part.to(dtype) / whole.clamp(min=1).to(dtype), empty)


def index_sums(mask: Mask) -> Int[Tensor, "b k 3"]:
    """Sums over a mask's pixels of their slice, row and column indices; the slice's is 0 where there is no such axis.

    >>> mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    >>> mask[0, 0, 1, 3] = mask[0, 0, 2, 3] = True
    >>> index_sums(mask).tolist()
    [[[0, 3, 6]]]
    """
    axes = range(2, mask.ndim)
    sums = []
    for axis in axes:
        others = [other for other in axes if other != axis]
        # one tensor for all parts: small ones that stay would leave the memory between them in pieces
        along = torch.empty((*mask.shape[:2], mask.shape[axis]), dtype=torch.int64, device=mask.device)
        start = 0
        for part in _cut(mask, axis):
            end = start + part.shape[axis]
            along[..., start:end] = part.sum(dim=others)
            start = end
        sums.append((along * torch.arange(mask.shape[axis], device=mask.device)).sum(2))
    return torch.stack([torch.zeros_like(sums[0])] * (3 - len(sums)) + sums, dim=-1)


def _cut(mask: Mask, axis: int) -> list[Tensor]:
    """The mask in parts along an axis, which are views."""
    n = max(1, SLAB * mask.shape[axis] // max(1, mask.numel()))
    return [mask.narrow(axis, i, min(n, mask.shape[axis] - i)) for i in range(0, mask.shape[axis], n)]
