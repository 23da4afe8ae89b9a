"""Surface distances in mm through MONAI, behind one rule for empty masks.

MONAI's percentile Hausdorff distance of a missed organ is not a number and drops out of averages, so that erasing
organs would improve it. Here, as `empty.RULES` states, two empty masks give NaN (left out), and one gives the diagonal
of the grid in mm for a distance, 0 for the normalised surface Dice.

The surface of a mask is its pixels that have a neighbour, up and down, left and right (and before and behind in 3-D),
outside of it or of the grid.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.types import Mask


@register("hd95_mm", kind="metric")
def hd95_mm(pred: Mask, target: Mask, spacing_mm: Sequence[tuple[float, ...]]) -> Float[Tensor, "b k"]:
    """95th percentile of the symmetric Hausdorff distance between surfaces, in mm."""
    from monai.metrics import compute_hausdorff_distance  # here: it takes seconds to load

    distance = partial(compute_hausdorff_distance, percentile=95)
    return _guarded(distance, pred, target, spacing_mm, _diagonal_mm(pred, spacing_mm))


@register("assd_mm", kind="metric")
def assd_mm(pred: Mask, target: Mask, spacing_mm: Sequence[tuple[float, ...]]) -> Float[Tensor, "b k"]:
    """Average symmetric surface distance: mean over both surfaces of the distance to the other one, in mm."""
    from monai.metrics import compute_average_surface_distance  # here: it takes seconds to load

    distance = partial(compute_average_surface_distance, symmetric=True)
    return _guarded(distance, pred, target, spacing_mm, _diagonal_mm(pred, spacing_mm))


@register("nsd", kind="metric", bounds={"tolerance_mm": "[0, inf)"})
def nsd(
    pred: Mask, target: Mask, spacing_mm: Sequence[tuple[float, ...]], *, tolerance_mm: float = 2.0
) -> Float[Tensor, "b k"]:
    """Normalised surface Dice: the share of both surfaces that lies within `tolerance_mm` of the other, in [0, 1].

    Args:
        tolerance_mm: distance in mm, 0 or more.

    Raises:
        InputError: the tolerance is not a length.
    """
    if not 0 <= tolerance_mm < math.inf:
        raise InputError(f"nsd: expected tolerance_mm of 0 or more, got {tolerance_mm}; e.g. nsd(tolerance_mm=2)")
    from monai.metrics import compute_surface_dice  # here: it takes seconds to load

    share = partial(compute_surface_dice, class_thresholds=[tolerance_mm])
    return _guarded(share, pred, target, spacing_mm, torch.zeros(pred.shape[:2], dtype=torch.float64))


def _diagonal_mm(pred: Mask, spacing_mm: Sequence[tuple[float, ...]]) -> Float[Tensor, "b k"]:
    sides = torch.tensor(pred.shape[2:], dtype=torch.float64) * torch.tensor(spacing_mm, dtype=torch.float64)
    return sides.square().sum(1).sqrt()[:, None].expand(-1, pred.shape[1])


def _guarded(
    measure: Callable[..., Any],
    pred: Mask,
    target: Mask,
    spacing_mm: Sequence[tuple[float, ...]],
    missed: Float[Tensor, "b k"],
) -> Float[Tensor, "b k"]:
    """`measure` where both masks hold something, `missed` where one does, NaN where none does."""
    pred, target = pred.cpu(), target.cpu()
    in_pred, in_target = pred.flatten(2).any(2), target.flatten(2).any(2)
    result = torch.where(in_pred | in_target, missed, torch.nan)
    both = in_pred & in_target
    if both.any():
        spacing = [spacing_mm[i] for i in both.nonzero()[:, 0].tolist()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI calls its own deprecated arguments
            values = measure(pred[both][:, None], target[both][:, None], include_background=True, spacing=spacing)
            result[both] = torch.as_tensor(values)[:, 0].to(torch.float64)
    return result
