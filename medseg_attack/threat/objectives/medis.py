"""The losses of MedIS, as their sources mean them and as they were released."""

from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from medseg_attack.numerics.samples import widen
from medseg_attack.registry import register
from medseg_attack.threat.objectives.losses import bce, bce_dice
from medseg_attack.types import LogOdds, Mask, Objective, PerSample

Maps: TypeAlias = Float[Tensor, "b k *s"]
GAMMA, BOUNDARY = 2.0, 31  # of exp_log; pixels across the neighbourhood whose mean says how near a boundary is
SHARES = (0.21, 0.18, 0.20, 0.15, 0.26)  # of the losses in their sum, in the order of `LOSSES`


@register("log_cosh_dice", kind="objective")
def log_cosh_dice(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Log-cosh Dice loss: log cosh(1 - soft Dice), of the mean over classes (arXiv 2006.14822)."""
    return _log_cosh_dice(torch.sigmoid(log_odds), target.to(log_odds.dtype))


@register("exp_log", kind="objective")
def exp_log(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Exponential logarithmic loss: half (-log Dice)^2, half (-log p)^2, without class weights (arXiv 1809.00076)."""
    y = target.to(log_odds.dtype)
    dice_term = -_dice(torch.sigmoid(log_odds), y).log()
    entry_term = functional.softplus(-(2 * y - 1) * log_odds)
    return (dice_term**GAMMA).mean(1) / 2 + (entry_term**GAMMA).flatten(1).mean(1) / 2


@register("boundary_iou", kind="objective")
def boundary_iou(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Cross-entropy plus 1 - soft IoU, both with weights of up to 6 at boundaries (PraNet, arXiv 2006.11392)."""
    y = target.to(log_odds.dtype)
    weight = _near_boundary(y).flatten(2)
    entries = functional.softplus(-(2 * y - 1) * log_odds).flatten(2)
    return ((weight * entries).sum(2) / weight.sum(2)).mean(1) + _iou_loss(torch.sigmoid(log_odds), y)


@register("lovasz_hinge", kind="objective")
def lovasz_hinge(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Lovasz hinge: the Lovasz extension of 1 - IoU on hinges, per case and class (arXiv 1705.08790)."""
    return _lovasz(log_odds, target.to(log_odds.dtype))


@register("medis_combined", kind="objective")
def medis_combined(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """The weighted sum of the five losses of MedIS, in its proportions."""
    return _weighted(LOSSES, log_odds, target)


@register("log_cosh_dice_shukla2023", kind="objective")
def log_cosh_dice_shukla2023(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """log_cosh_dice as MedIS released it: on probabilities stretched to [0, 1] of each image."""
    return _log_cosh_dice(_stretched(log_odds), target.to(log_odds.dtype))


@register("bce_dice_shukla2023", kind="objective")
def bce_dice_shukla2023(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """bce_dice as MedIS released it, with stretched probabilities for logits: all it sees lies in [0.5, 0.731]."""
    p, y = _stretched(log_odds), target.to(log_odds.dtype)
    return bce(p, target) + (1 - _dice(torch.sigmoid(p), y)).mean(1)


@register("exp_log_shukla2023", kind="objective")
def exp_log_shukla2023(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """exp_log as MedIS released it, of 1 - Dice in place of Dice: it grows with Dice.

    While cross-entropy is below 1, it falls as that grows.
    """
    p, y = _stretched(log_odds), target.to(log_odds.dtype)
    dice_term = -(1 - _dice(p, y)).clamp(min=1e-7).log()
    return (dice_term**GAMMA).mean(1) / 2 + (-bce(p, target).log()) ** GAMMA / 2


@register("boundary_iou_shukla2023", kind="objective")
def boundary_iou_shukla2023(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """boundary_iou as MedIS released it: weights cancel in cross-entropy, stretched probabilities are its logits."""
    p, y = _stretched(log_odds), target.to(log_odds.dtype)
    return bce(p, target) + _iou_loss(torch.sigmoid(p), y)


@register("lovasz_hinge_shukla2023", kind="objective")
def lovasz_hinge_shukla2023(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """lovasz_hinge as MedIS released it, with stretched probabilities for logits: no organ pixel passes its hinge."""
    return _lovasz(_stretched(log_odds), target.to(log_odds.dtype))


@register("medis_combined_shukla2023", kind="objective")
def medis_combined_shukla2023(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """The weighted sum of the five losses of MedIS as released, in the same proportions."""
    return _weighted(RELEASED, log_odds, target)


LOSSES: tuple[Objective, ...] = (boundary_iou, log_cosh_dice, bce_dice, exp_log, lovasz_hinge)
RELEASED: tuple[Objective, ...] = (
    boundary_iou_shukla2023,
    log_cosh_dice_shukla2023,
    bce_dice_shukla2023,
    exp_log_shukla2023,
    lovasz_hinge_shukla2023,
)


def _weighted(losses: tuple[Objective, ...], log_odds: LogOdds, target: Mask) -> PerSample:
    return torch.stack([share * loss(log_odds, target) for loss, share in zip(losses, SHARES, strict=True)]).sum(0)


def _stretched(log_odds: LogOdds) -> Maps:
    """Probabilities, of each image stretched so that the least is 0 and the largest 1."""
    p = torch.sigmoid(log_odds)
    flat = p.flatten(1)
    low, high = (widen(end, p) for end in (flat.amin(1), flat.amax(1)))
    return (p - low) / (high - low + 1e-8)


def _dice(p: Maps, y: Maps) -> Float[Tensor, "b k"]:
    """Soft Dice of each class, with one pixel added above and below."""
    p, y = p.flatten(2), y.flatten(2)
    return (2 * (p * y).sum(2) + 1) / (p.sum(2) + y.sum(2) + 1)


def _log_cosh_dice(p: Maps, y: Maps) -> PerSample:
    return torch.log(torch.cosh((1 - _dice(p, y)).mean(1)))


def _near_boundary(y: Maps) -> Maps:
    mean = y
    for axis in range(2, y.ndim):  # one by one: the pools of volumes refuse those with fewer slices than they average
        lines = mean.movedim(axis, -1)
        pooled = functional.avg_pool1d(lines.flatten(0, -2)[:, None], BOUNDARY, stride=1, padding=BOUNDARY // 2)
        mean = pooled.view(lines.shape).movedim(-1, axis)
    return 1 + 5 * (mean - y).abs()


def _iou_loss(p: Maps, y: Maps) -> PerSample:
    weight = _near_boundary(y).flatten(2)
    p, y = p.flatten(2), y.flatten(2)
    intersection, union = (weight * p * y).sum(2), (weight * (p + y - p * y)).sum(2)
    return (1 - (intersection + 1) / (union + 1)).mean(1)


def _lovasz(z: Maps, y: Maps) -> PerSample:
    errors, order = (1 - (2 * y - 1) * z).flatten(2).sort(2, descending=True)
    organ = y.flatten(2).gather(2, order)
    size = organ.sum(2, keepdim=True)
    jaccard_loss = 1 - (size - organ.cumsum(2)) / (size + (1 - organ).cumsum(2))
    slope = torch.cat((jaccard_loss[..., :1], jaccard_loss[..., 1:] - jaccard_loss[..., :-1]), 2)
    return (functional.relu(errors) * slope).sum(2).mean(1)
