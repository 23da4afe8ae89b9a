"""Objectives: pure functions of log-odds and truth, per sample, larger = worse for the model."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medseg_attack.numerics.slabs import is_one_slab, sums_by_slab
from medseg_attack.registry import register
from medseg_attack.types import LogOdds, Mask, PerSample


def margin_of(log_odds: LogOdds, target: Mask) -> LogOdds:
    """The margin of each entry: its log-odds on the true side, > 0 where it is right."""
    return torch.where(target, log_odds, -log_odds)


def mean_of(term: Callable[[LogOdds, Mask], Tensor], log_odds: LogOdds, target: Mask) -> PerSample:
    """The mean of each sample over what a function returns for its entries or its pixels.

    Of a volume larger than a slab no more than a slab is computed at a time.
    """

    def sums(log_odds: LogOdds, target: Mask) -> Tensor:
        values = term(log_odds, target).flatten(1)
        total = values.sum(1, dtype=torch.float64)
        return torch.stack([total, torch.full_like(total, values.shape[1])])

    if is_one_slab(log_odds):
        return term(log_odds, target).flatten(1).mean(1)
    total, n = sums_by_slab(sums, log_odds, target).unbind()
    return (total / n).to(log_odds.dtype)


@register("bce", kind="objective")
def bce(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Binary cross-entropy, mean over pixels and classes; its gradient grows with how wrong an entry is already."""
    return mean_of(bce_of, log_odds, target)


def bce_of(log_odds: LogOdds, target: Mask) -> LogOdds:
    """Binary cross-entropy of each entry."""
    return F.softplus(-margin_of(log_odds, target))


@register("ce", kind="objective")
def ce(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Cross-entropy of the true class, mean over pixels.

    For an exclusive task this is the softmax cross-entropy exactly, since log p = -softplus(-log-odds). Where
    classes may overlap it is the cross-entropy of the organ's pixels alone: background has no class there.
    """
    return mean_of(nll, log_odds, target)


def nll(log_odds: LogOdds, target: Mask) -> Float[Tensor, "b *s"]:
    """Negative log-likelihood: -log p of the true class of each pixel."""
    return (F.softplus(-log_odds) * target).sum(1)


@register("soft_dice", kind="objective", bounds={"smooth": "[0, inf)"})
def soft_dice(log_odds: LogOdds, target: Mask, progress: float = 1.0, *, smooth: float = 1.0) -> PerSample:
    """Soft Dice loss: 1 - Dice of the probabilities, mean over classes.

    Args:
        smooth: pixels, 0 or more, that are added above and below, so that an organ that is absent still has a
            gradient: an attack can make the model hallucinate it.
    """
    both, n_pred, n_target = sums_by_slab(_soft_counts, log_odds, target).unbind()
    dice = (2 * both + smooth) / (n_pred + n_target + smooth)
    return (1 - dice).mean(1)


def _soft_counts(log_odds: LogOdds, target: Mask) -> Float[Tensor, "3 b k"]:
    """Sums over pixels of probability times truth, of probability, and of truth."""
    p, y = torch.sigmoid(log_odds).flatten(2), target.flatten(2).to(log_odds.dtype)
    return torch.stack([(p * y).sum(2), p.sum(2), y.sum(2)])


@register("focal", kind="objective", bounds={"gamma": "[0, inf)"})
def focal(log_odds: LogOdds, target: Mask, progress: float = 1.0, *, gamma: float = 2.0) -> PerSample:
    """Focal loss (arXiv 1708.02002) without class weights: blind to entries that are confidently right.

    Args:
        gamma: exponent of the weight 1 - p of each entry, 0 or more; 0 weighs all alike.
    """

    def entries(log_odds: LogOdds, target: Mask) -> LogOdds:
        margin = margin_of(log_odds, target)
        return torch.sigmoid(-margin) ** gamma * F.softplus(-margin)

    return mean_of(entries, log_odds, target)


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
    return mean_of(lambda log_odds, target: -margin_of(log_odds, target), log_odds, target)


@register("js_softmax", kind="objective", exclusive=True)
def js_softmax(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Jensen-Shannon divergence of softmax and truth, per pixel: of all classes it depends on the true one alone."""
    return mean_of(lambda log_odds, target: (_js(log_odds) * target).sum(1), log_odds, target)


@register("js", kind="objective", softmax=js_softmax)
def js(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Jensen-Shannon divergence of prediction and truth, per entry (arXiv 2306.12941): fades at both certain ends."""
    return mean_of(lambda log_odds, target: _js(margin_of(log_odds, target)), log_odds, target)


def _js(margin: LogOdds) -> LogOdds:
    log_p, p, q = F.logsigmoid(margin), torch.sigmoid(margin), torch.sigmoid(-margin)
    return (math.log(2) - torch.log1p(p) + p * (math.log(2) + log_p - torch.log1p(p)) + q * math.log(2)) / 2
