"""Objectives: pure functions of log-odds and truth, per sample, larger = worse for the model."""

import math

import torch
import torch.nn.functional as F

from medseg_attack.registry import register
from medseg_attack.types import LogOdds, Mask, PerSample


def margin_of(log_odds: LogOdds, target: Mask) -> LogOdds:
    """The margin of each entry: its log-odds on the true side, > 0 where it is right."""
    return torch.where(target, log_odds, -log_odds)


def mean(x: LogOdds) -> PerSample:
    """The mean over all entries of each sample."""
    return x.flatten(1).mean(1)


@register("bce", kind="objective")
def bce(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Binary cross-entropy, mean over pixels and classes; its gradient grows with how wrong an entry is already."""
    return mean(F.softplus(-margin_of(log_odds, target)))


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
    """Soft Dice loss: 1 - Dice of the probabilities, mean over classes.

    Args:
        smooth: pixels, 0 or more, that are added above and below, so that an organ that is absent still has a
            gradient: an attack can make the model hallucinate it.
    """
    p, y = torch.sigmoid(log_odds).flatten(2), target.flatten(2).to(log_odds.dtype)
    dice = (2 * (p * y).sum(2) + smooth) / (p.sum(2) + y.sum(2) + smooth)
    return (1 - dice).mean(1)


@register("focal", kind="objective")
def focal(log_odds: LogOdds, target: Mask, progress: float = 1.0, *, gamma: float = 2.0) -> PerSample:
    """Focal loss (arXiv 1708.02002) without class weights: blind to entries that are confidently right.

    Args:
        gamma: exponent of the weight 1 - p of each entry, 0 or more; 0 weighs all alike.
    """
    margin = margin_of(log_odds, target)
    return mean(torch.sigmoid(-margin) ** gamma * F.softplus(-margin))


@register("dice_focal", kind="objective")
def dice_focal(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """The sum of soft_dice and focal, the loss most of these networks are trained with."""
    return soft_dice(log_odds, target) + focal(log_odds, target)


@register("bce_dice", kind="objective")
def bce_dice(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """The sum of bce and soft_dice."""
    return bce(log_odds, target) + soft_dice(log_odds, target)


@register("margin", kind="objective")
def margin(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Minus the mean margin: linear in the log-odds, so it never saturates."""
    return mean(-margin_of(log_odds, target))


@register("js_softmax", kind="objective", exclusive=True)
def js_softmax(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Jensen-Shannon divergence of softmax and truth, per pixel: of all classes it depends on the true one alone."""
    return mean((_js(log_odds) * target).sum(1))


@register("js", kind="objective", softmax=js_softmax)
def js(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Jensen-Shannon divergence of prediction and truth, per entry (arXiv 2306.12941): fades at both certain ends."""
    return mean(_js(margin_of(log_odds, target)))


def _js(margin: LogOdds) -> LogOdds:
    log_p, p, q = F.logsigmoid(margin), torch.sigmoid(margin), torch.sigmoid(-margin)
    return (math.log(2) - torch.log1p(p) + p * (math.log(2) + log_p - torch.log1p(p)) + q * math.log(2)) / 2
