"""Objectives with mask and output swapped, as the code released with arXiv 2401.11224 has them."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medseg_attack.numerics.slabs import sums_by_slab
from medseg_attack.registry import register
from medseg_attack.threat.objectives.losses import bce, dice_focal, focal, mean_of, soft_dice
from medseg_attack.types import LogOdds, Mask, Objective, PerSample


@register("bce_swapped", kind="objective")
def bce_swapped(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """BCE-with-logits(input=mask, target=log-odds): its gradient is -mask/N at every confidence."""
    return mean_of(_swapped, log_odds, target)


@register("focal_swapped", kind="objective", bounds={"gamma": "[0, inf)"})
def focal_swapped(log_odds: LogOdds, target: Mask, progress: float = 1.0, *, gamma: float = 2.0) -> PerSample:
    """MONAI's sigmoid focal loss(input=mask, target=log-odds): pushes only organ pixels below log-odds of 1.59.

    Args:
        gamma: exponent of the focal weight, 0 or more.
    """

    def entries(log_odds: LogOdds, target: Mask) -> LogOdds:
        y = target.to(log_odds.dtype)
        return torch.sigmoid(-y * (2 * log_odds - 1)) ** gamma * _swapped(log_odds, target)

    return mean_of(entries, log_odds, target)


@register("dice_swapped", kind="objective", bounds={"smooth": "[0, inf)"})
def dice_swapped(log_odds: LogOdds, target: Mask, progress: float = 1.0, *, smooth: float = 1e-5) -> PerSample:
    """MONAI's sigmoid Dice loss(input=mask, target=log-odds): the sigmoid falls on the mask.

    Args:
        smooth: pixels, 0 or more, that are added above and below.
    """
    both, n_target, n_pred = sums_by_slab(_swapped_counts, log_odds, target).unbind()
    ratio = (2 * both + smooth) / (n_target + n_pred + smooth)
    return (1 - ratio).mean(1)


def _swapped(log_odds: LogOdds, target: Mask) -> LogOdds:
    y = target.to(log_odds.dtype)
    return F.softplus(y) - y * log_odds


def _swapped_counts(log_odds: LogOdds, target: Mask) -> Float[Tensor, "3 b k"]:
    a, z = torch.sigmoid(target.to(log_odds.dtype)).flatten(2), log_odds.flatten(2)
    return torch.stack([(a * z).sum(2), a.sum(2), z.sum(2)])


@register("dice_focal_swapped", kind="objective")
def dice_focal_swapped(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """The sum of dice_swapped and focal_swapped."""
    return dice_swapped(log_odds, target) + focal_swapped(log_odds, target)


SWAPPED: dict[Objective, Objective] = {
    bce: bce_swapped,
    focal: focal_swapped,
    soft_dice: dice_swapped,
    dice_focal: dice_focal_swapped,
}
