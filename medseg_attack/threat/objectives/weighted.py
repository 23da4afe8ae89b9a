"""Objectives whose entries weigh differently as an attack goes on: masked, balanced, progressive, cosine.

A weight in [0, 1], a constant of the gradient, says how much of an entry's loss is climbed on the way from the truth.
On the way to a goal the weight is its rest to 1 (`REVERSED`), as targeted SegPGD and CosPGD have it: entries that are
as wanted already weigh least. With the weight itself an attack would push those alone.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg_attack.registry import register
from medseg_attack.threat.objectives.losses import bce, bce_of, ce, margin, margin_of, mean_of, nll
from medseg_attack.threat.objectives.softmax import PerPixel, contest, spherical, spherical_of
from medseg_attack.types import LogOdds, Mask, Objective, PerSample

Weigh = Callable[[Tensor], Tensor]
Weighted = Callable[[LogOdds, Mask, float, Weigh], PerSample]
REVERSED: dict[Objective, Objective] = {}


def reversible(name: str, **facts: Any) -> Callable[[Weighted], Objective]:
    """Registers the objective that leads away from the truth; `REVERSED` of it is the one that leads to a goal.

    It decorates a function that takes, beside log-odds, truth and progress, the map that its weights go through.

    Args:
        facts: what `register` takes of an objective.
    """

    def add(weighted: Weighted) -> Objective:
        @register(name, kind="objective", **facts)
        @wraps(weighted)
        def away(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
            return weighted(log_odds, target, progress, lambda weight: weight)

        REVERSED[away] = lambda log_odds, target, progress=1.0: weighted(log_odds, target, progress, lambda w: 1 - w)
        return away

    return add


@reversible("masked_ce", exclusive=True, unweighted=ce)
def masked_ce(log_odds: LogOdds, target: Mask, progress: float, weigh: Weigh) -> PerSample:
    """ce of the pixels that are still right: the softmax form of masked_bce."""
    return mean_of(lambda log_odds, target: weigh(_won(log_odds, target)) * nll(log_odds, target), log_odds, target)


@reversible("balanced_ce", exclusive=True, unweighted=ce)
def balanced_ce(log_odds: LogOdds, target: Mask, progress: float, weigh: Weigh) -> PerSample:
    """masked_ce in which every class of the image weighs the same: the softmax form of balanced_bce."""
    loss = (weigh(_won(log_odds, target)) * nll(log_odds, target)).unsqueeze(1)
    per_class = (loss * target).flatten(2).sum(2) / target.flatten(2).sum(2).clamp(min=1)
    return per_class.mean(1)


@reversible("progressive_ce", exclusive=True, unweighted=ce)
def progressive_ce(log_odds: LogOdds, target: Mask, progress: float, weigh: Weigh) -> PerSample:
    """ce with SegPGD's weights, as published (arXiv 2207.12391): the softmax form of progressive_bce."""
    return mean_of(
        lambda log_odds, target: weigh(_progressive(_won(log_odds, target), progress)) * nll(log_odds, target),
        log_odds,
        target,
    )


@reversible("cosine_ce", exclusive=True)
def cosine_ce(log_odds: LogOdds, target: Mask, progress: float, weigh: Weigh) -> PerSample:
    """ce times the cosine of softmax and truth, as published (arXiv 2302.02213): the softmax form of cosine_bce."""

    def pixels(log_odds: LogOdds, target: Mask) -> PerPixel:
        p = torch.sigmoid(log_odds)
        cosine = (p * target).sum(1) / (p.square().sum(1) + 1e-12).sqrt()
        return weigh(cosine.detach()) * nll(log_odds, target)

    return mean_of(pixels, log_odds, target)


@reversible("masked_spherical", exclusive=True, unweighted=spherical)
def masked_spherical(log_odds: LogOdds, target: Mask, progress: float, weigh: Weigh) -> PerSample:
    """spherical of the pixels that are still right (arXiv 2306.12941): the softmax form of masked_margin."""
    return mean_of(
        lambda log_odds, target: weigh(_won(log_odds, target)) * spherical_of(log_odds, target), log_odds, target
    )


@reversible("masked_bce", softmax=masked_ce, unweighted=bce)
def masked_bce(log_odds: LogOdds, target: Mask, progress: float, weigh: Weigh) -> PerSample:
    """bce of the entries that are still right (MCE of arXiv 2306.12941): nothing is spent on what is lost."""
    return mean_of(
        lambda log_odds, target: weigh(_right(log_odds, target)) * bce_of(log_odds, target), log_odds, target
    )


@reversible("balanced_bce", softmax=balanced_ce, unweighted=bce)
def balanced_bce(log_odds: LogOdds, target: Mask, progress: float, weigh: Weigh) -> PerSample:
    """masked_bce in which organ and surroundings of every class weigh the same (MCE-Bal of arXiv 2306.12941).

    The paper weighs by pixels of the training set; we count those of the image itself, so no data set is needed.
    """
    loss, organ = (weigh(_right(log_odds, target)) * bce_of(log_odds, target)).flatten(2), target.flatten(2)
    inside = (loss * organ).sum(2) / organ.sum(2).clamp(min=1)
    outside = (loss * ~organ).sum(2) / (~organ).sum(2).clamp(min=1)
    return (inside + outside).mean(1) / 2


@reversible("masked_margin", softmax=masked_spherical, unweighted=margin)
def masked_margin(log_odds: LogOdds, target: Mask, progress: float, weigh: Weigh) -> PerSample:
    """Minus the mean margin of the entries that are still right: each is pushed alike until it falls."""
    return mean_of(
        lambda log_odds, target: -weigh(_right(log_odds, target)) * margin_of(log_odds, target), log_odds, target
    )


@reversible("progressive_bce", softmax=progressive_ce, unweighted=bce)
def progressive_bce(log_odds: LogOdds, target: Mask, progress: float, weigh: Weigh) -> PerSample:
    """bce with SegPGD's weights (arXiv 2207.12391, eq. 4): 1 - progress/2 where right, progress/2 where wrong."""
    return mean_of(
        lambda log_odds, target: weigh(_progressive(_right(log_odds, target), progress)) * bce_of(log_odds, target),
        log_odds,
        target,
    )


@reversible("cosine_bce", softmax=cosine_ce)
def cosine_bce(log_odds: LogOdds, target: Mask, progress: float, weigh: Weigh) -> PerSample:
    """bce with CosPGD's weights (arXiv 2302.02213), of each entry against its own complement.

    The paper's cosine runs over the classes of a pixel, which is 0 wherever no organ is; per entry it is that of
    (p, 1 - p) with the truth. Its gradient is even in the margin: entries near the boundary are pushed most.
    """

    def entries(log_odds: LogOdds, target: Mask) -> LogOdds:
        margins = margin_of(log_odds, target)
        true, wrong = torch.sigmoid(margins), torch.sigmoid(-margins)
        cosine = true / (true.square() + wrong.square()).sqrt()
        return weigh(cosine.detach()) * F.softplus(-margins)

    return mean_of(entries, log_odds, target)


def _right(log_odds: LogOdds, target: Mask) -> LogOdds:
    return ((log_odds >= 0) == target).to(log_odds.dtype)


def _won(log_odds: LogOdds, target: Mask) -> PerPixel:
    """Weights of the pixels: 1 where the true class has the largest log-odds, else 0."""
    true, best, _ = contest(log_odds.detach(), target)
    return (true >= best).to(log_odds.dtype)


def _progressive(right: Tensor, progress: float) -> Tensor:
    share = progress / 2
    return right * (1 - share) + (1 - right) * share
