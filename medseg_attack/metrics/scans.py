"""Slices put back into scans: a distance is measured on all slices of a scan at once, in 3-D.

A slice knows nothing of its neighbours: an organ that is lost on one slice of forty is 40 mm away from the truth
there, and a few mm in the patient. So predictions are kept, one bit per pixel, until their scan is whole.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from medseg_attack.registry.foreign import at_fault
from medseg_attack.types import Case, Mask, Metric

Bits = NDArray[np.uint8]


def packed(masks: Mask) -> list[Bits]:
    """Each sample's mask, eight pixels to the byte, on the CPU."""
    return [np.packbits(mask) for mask in masks.cpu().numpy()]


def unpacked(bits: Sequence[Bits], like: Mask) -> Mask:
    """The masks that were packed, of the shape of `like` and on its device."""
    each = [np.unpackbits(mask, count=like[0].numel()) for mask in bits]
    stacked = each[0][None] if len(each) == 1 else np.stack(each)  # one alone, such as a volume, is not copied
    return torch.from_numpy(stacked).view(torch.bool).view(like.shape).to(like.device)


def by_scan(
    metrics: Mapping[str, Metric],
    cases: Sequence[Case],
    predictions: Sequence[Bits],
    targets: Sequence[Bits],
    classes: Sequence[str],
) -> dict[tuple[str, str], dict[str, float]]:
    """Every metric of every scan and class, by (volume, class); a scan of one slice is measured in 2-D.

    The truth is given beside each prediction: an attack may have moved it.
    NaN for a scan that lacks slices: its surfaces would be those of the gaps.
    """
    result: dict[tuple[str, str], dict[str, float]] = {}
    for volume, indices in _scans(cases).items():
        values = {name: [math.nan] * len(classes) for name in metrics}
        stack = cases[indices[0]].stack
        if len(indices) == (1 if stack is None else stack.slices):
            for name, metric in metrics.items():  # each on masks of its own: one may change them
                pred, target, spacing = _stacked(cases, predictions, targets, indices)
                values[name] = _numbers(name, metric, metric(pred, target, [spacing]), len(classes))
        for k, cls in enumerate(classes):
            result[volume, cls] = {name: of_class[k] for name, of_class in values.items()}
    return result


def _numbers(name: str, metric: Metric, values: object, n_classes: int) -> list[float]:
    """The answer of a metric on one scan.

    Raises:
        RuntimeError: it is not one number per class; an InputError, if the metric is of somebody else's.
    """
    answer = torch.as_tensor(values) if isinstance(values, np.ndarray | torch.Tensor) else None
    if answer is None or tuple(answer.shape) != (1, n_classes):
        got = f"a {type(values).__name__}" if answer is None else f"the shape {tuple(answer.shape)}"
        raise at_fault(
            metric,
            f"expected one number per case and class, the shape (1, {n_classes}), for the column {name}, got {got}; "
            "the metric is at fault",
        )
    numbers: list[float] = answer[0].double().tolist()
    return numbers


def diagonals_mm(cases: Sequence[Case]) -> dict[str, float]:
    """The diagonal of each scan's grid in mm: no distance is longer; NaN for a scan that lacks slices."""
    result = {}
    for volume, indices in _scans(cases).items():
        first = cases[indices[0]]
        sides = [n * side for n, side in zip(first.target.shape[1:], first.spacing_mm, strict=True)]
        if first.stack is not None and first.stack.slices > 1:
            sides.append(first.stack.slices * first.stack.spacing_mm)
        is_whole = len(indices) == (1 if first.stack is None else first.stack.slices)
        result[volume] = math.hypot(*sides) if is_whole else math.nan
    return result


def _scans(cases: Sequence[Case]) -> dict[str, list[int]]:
    scans: dict[str, list[int]] = {}
    for i in sorted(range(len(cases)), key=lambda i: cases[i].stack.index if cases[i].stack else 0):  # type: ignore[union-attr]
        scans.setdefault(cases[i].volume, []).append(i)
    return scans


def _stacked(
    cases: Sequence[Case], predictions: Sequence[Bits], targets: Sequence[Bits], indices: Sequence[int]
) -> tuple[Mask, Mask, tuple[float, ...]]:
    first = cases[indices[0]]
    shape = tuple(first.target.shape)
    pred, target = (
        torch.from_numpy(
            np.stack([np.unpackbits(bits[i], count=math.prod(shape)).reshape(shape) for i in indices], axis=1)
        ).bool()
        for bits in (predictions, targets)
    )
    if first.stack is None or len(indices) == 1:
        return pred.transpose(0, 1), target.transpose(0, 1), first.spacing_mm
    return pred[None], target[None], (first.stack.spacing_mm, *first.spacing_mm)
