"""What an attacker climbs: pure functions of log-odds and truth, per sample, larger = worse for the model.

Every mean is over one sample's own pixels and classes, so a sample's gradient does not depend on its batch. The
*margin* of an entry (pixel, class) is its log-odds, negated where the class is absent: positive = right.

Where classes exclude each other, some have a softmax form, which looks at each pixel's true class against the others;
attacks climb that form on an exclusive task (`forms.suited`).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.types import LogOdds, Mask, PerSample


def margin_of(log_odds: LogOdds, target: Mask) -> LogOdds:
    return torch.where(target, log_odds, -log_odds)


def mean(x: LogOdds) -> PerSample:
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
    margin = margin_of(log_odds, target)
    return mean(torch.sigmoid(-margin) ** gamma * F.softplus(-margin))


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
    return mean(-margin_of(log_odds, target))


@register("js", kind="objective")
def js(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Jensen-Shannon divergence of prediction and truth, per entry (arXiv 2306.12941): fades at both certain ends."""
    return mean(_js(margin_of(log_odds, target)))


@register("js_softmax", kind="objective")
def js_softmax(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Jensen-Shannon divergence of softmax and truth, per pixel: of all classes it depends on the true one alone."""
    return mean((_js(log_odds) * target).sum(1))


@register("margin_softmax", kind="objective")
def margin_softmax(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """The best other class's logit less the true one's, mean over pixels."""
    true, best, *_ = contest(log_odds, target)
    return mean(best - true)


@register("spherical", kind="objective")
def spherical(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Minus the true logit over the length of the pixel's logits, which are centred first: blind to their scale.

    The released code takes raw logits, on which an addition to all of them has an effect that no probability shows.
    """
    return mean(spherical_of(log_odds, target))


@register("dlr", kind="objective")
def dlr(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Difference of logits ratio (arXiv 2003.01690, eq. 6), mean over pixels; classes must exclude each other.

    Raises:
        InputError: there are fewer than three classes.
    """
    if log_odds.shape[1] < 3:
        raise InputError(
            f"expected three classes or more for dlr, which divides by how far the best logit is above the third, "
            f"got {log_odds.shape[1]}; take margin, or masked_margin"
        )
    true, best, logits = contest(log_odds, target)
    top = logits.topk(3, dim=1).values
    return mean((best - true) / (top[:, 0] - top[:, 2] + 1e-12))


def _js(margin: LogOdds) -> LogOdds:
    log_p, p, q = F.logsigmoid(margin), torch.sigmoid(margin), torch.sigmoid(-margin)
    return (math.log(2) - torch.log1p(p) + p * (math.log(2) + log_p - torch.log1p(p)) + q * math.log(2)) / 2


PerPixel = Float[Tensor, "b *s"]


def nll(log_odds: LogOdds, target: Mask) -> PerPixel:
    """-log p of the true class."""
    return (F.softplus(-log_odds) * target).sum(1)


def contest(log_odds: LogOdds, target: Mask) -> tuple[PerPixel, PerPixel, LogOdds]:
    """The true class's logit, the best other one's, and all of them, in their softmax gauge: log p."""
    logits = F.logsigmoid(log_odds)
    best = logits.masked_fill(target, -torch.inf).amax(1)
    return (logits * target).sum(1), best, logits


def spherical_of(log_odds: LogOdds, target: Mask) -> PerPixel:
    logits = F.logsigmoid(log_odds)
    centred = logits - logits.mean(1, keepdim=True)
    return -(centred * target).sum(1) / (centred.square().sum(1) + 1e-12).sqrt()


def harm(pred: Mask, target: Mask) -> PerSample:
    """1 - Dice of hard masks, mean over classes; a class absent from both counts as right (the Judge of attacks)."""
    pred, target = pred.flatten(2), target.flatten(2)
    both, total = (pred & target).sum(2), pred.sum(2) + target.sum(2)
    dice = torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)
    return (1 - dice).mean(1)
