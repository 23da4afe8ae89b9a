"""What an attacker climbs: pure functions of log-odds and truth, per sample, larger = worse for the model.

Every mean is over one sample's own pixels and classes, so a sample's gradient does not depend on its batch. The
*margin* of an entry (pixel, class) is its log-odds, negated where the class is absent: positive = right.
"""

import torch
import torch.nn.functional as F

from medseg_attack.registry import register
from medseg_attack.types import LogOdds, Mask, PerSample


def _margin(log_odds: LogOdds, target: Mask) -> LogOdds:
    return torch.where(target, log_odds, -log_odds)


def _mean(x: LogOdds) -> PerSample:
    return x.flatten(1).mean(1)


@register("bce", kind="objective")
def bce(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Binary cross-entropy, mean over pixels and classes; its gradient grows with how wrong an entry is already."""
    return _mean(F.softplus(-_margin(log_odds, target)))


@register("ce", kind="objective")
def ce(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Cross-entropy of the true class, mean over pixels.

    For an exclusive task this is the softmax cross-entropy exactly, since log p = -softplus(-log-odds). Where
    classes may overlap it is the cross-entropy of the organ's pixels alone: background has no class there.
    """
    per_pixel = (F.softplus(-log_odds) * target).sum(1)
    return per_pixel.flatten(1).mean(1)


@register("soft_dice", kind="objective")
def soft_dice(log_odds: LogOdds, target: Mask, progress: float = 1.0, *, smooth: float = 1.0) -> PerSample:
    """1 - soft Dice, mean over classes.

    `smooth` (in pixels) is added above and below, so that an organ that is absent still has a gradient: an attack
    can make the model hallucinate it.
    """
    p, y = torch.sigmoid(log_odds).flatten(2), target.flatten(2).to(log_odds.dtype)
    dice = (2 * (p * y).sum(2) + smooth) / (p.sum(2) + y.sum(2) + smooth)
    return (1 - dice).mean(1)


@register("focal", kind="objective")
def focal(log_odds: LogOdds, target: Mask, progress: float = 1.0, *, gamma: float = 2.0) -> PerSample:
    """Focal loss (arXiv 1708.02002) without class weights: blind to entries that are confidently right."""
    margin = _margin(log_odds, target)
    return _mean(torch.sigmoid(-margin) ** gamma * F.softplus(-margin))


@register("dice_focal", kind="objective")
def dice_focal(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """soft_dice + focal, the loss most of these networks are trained with."""
    return soft_dice(log_odds, target) + focal(log_odds, target)


@register("bce_dice", kind="objective")
def bce_dice(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """bce + soft_dice."""
    return bce(log_odds, target) + soft_dice(log_odds, target)


@register("margin", kind="objective")
def margin(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Minus the mean margin: linear in the log-odds, so it never saturates."""
    return _mean(-_margin(log_odds, target))


def harm(pred: Mask, target: Mask) -> PerSample:
    """1 - Dice of hard masks, mean over classes; a class absent from both counts as right (the Judge of attacks)."""
    pred, target = pred.flatten(2), target.flatten(2)
    both, total = (pred & target).sum(2), pred.sum(2) + target.sum(2)
    dice = torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)
    return (1 - dice).mean(1)
