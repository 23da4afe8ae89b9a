"""Objectives that compare a pixel's true class with the others; for classes that exclude each other."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.threat.objectives.losses import mean_of
from medseg_attack.types import LogOdds, Mask, PerSample

PerPixel = Float[Tensor, "b *s"]


@register("margin_softmax", kind="objective", exclusive=True)
def margin_softmax(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Softmax margin: the best other class's logit less the true one's, mean over pixels."""

    def pixels(log_odds: LogOdds, target: Mask) -> PerPixel:
        true, best, _ = contest(log_odds, target)
        return best - true

    return mean_of(pixels, log_odds, target)


@register("spherical", kind="objective", exclusive=True)
def spherical(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Minus the true logit on the sphere of a pixel's centred logits (arXiv 2306.12941): blind to their scale.

    The released code takes raw logits, on which an addition to all of them has an effect that no probability shows.
    """
    return mean_of(spherical_of, log_odds, target)


@register("dlr", kind="objective", exclusive=True)
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
    return mean_of(_ratio, log_odds, target)


def _ratio(log_odds: LogOdds, target: Mask) -> Float[Tensor, "b *s"]:
    true, best, logits = contest(log_odds, target)
    top = logits.topk(3, dim=1).values
    return (best - true) / (top[:, 0] - top[:, 2] + 1e-12)


def contest(log_odds: LogOdds, target: Mask) -> tuple[PerPixel, PerPixel, LogOdds]:
    """The true class's logit, the best other one's, and all of them, in their softmax gauge: log p."""
    logits = F.logsigmoid(log_odds)
    best = logits.masked_fill(target, -torch.inf).amax(1)
    return (logits * target).sum(1), best, logits


def spherical_of(log_odds: LogOdds, target: Mask) -> PerPixel:
    """Minus the true logit over the length of the logits of each pixel, which are centred first."""
    logits = F.logsigmoid(log_odds)
    centred = logits - logits.mean(1, keepdim=True)
    return -(centred * target).sum(1) / (centred.square().sum(1) + 1e-12).sqrt()
