"""What an attacker climbs: pure functions of log-odds and truth, per sample, larger = worse for the model.

Every mean is over one sample's own pixels and classes, so a sample's gradient does not depend on its batch. The
*margin* of an entry (pixel, class) is its log-odds, negated where the class is absent: positive = right.

Where classes exclude each other, some have a softmax form, which looks at each pixel's true class against the others;
attacks climb that form on an exclusive task (`suited`). Weights and masks are constants of the gradient.
"""

import math
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.registry import Bound, register, spec
from medseg_attack.types import LogOdds, Mask, Objective, PerSample, Task


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


@register("js", kind="objective")
def js(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Jensen-Shannon divergence of prediction and truth, per entry (arXiv 2306.12941): fades at both certain ends."""
    return _mean(_js(_margin(log_odds, target)))


@register("masked_bce", kind="objective")
def masked_bce(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """bce of the entries that are still right (MCE of arXiv 2306.12941): nothing is spent on what is lost."""
    margin = _margin(log_odds, target)
    return _mean(_right(log_odds, target) * F.softplus(-margin))


@register("balanced_bce", kind="objective")
def balanced_bce(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """masked_bce in which organ and surroundings of every class weigh the same (MCE-Bal of arXiv 2306.12941).

    The paper weighs by pixels of the training set; here the image's own are counted, so no data set is needed.
    """
    margin, organ = _margin(log_odds, target), target.flatten(2)
    loss = (_right(log_odds, target) * F.softplus(-margin)).flatten(2)
    inside = (loss * organ).sum(2) / organ.sum(2).clamp(min=1)
    outside = (loss * ~organ).sum(2) / (~organ).sum(2).clamp(min=1)
    return (inside + outside).mean(1) / 2


@register("masked_margin", kind="objective")
def masked_margin(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Minus the mean margin of the entries that are still right: each is pushed alike until it falls."""
    return _mean(-_right(log_odds, target) * _margin(log_odds, target))


@register("progressive_bce", kind="objective")
def progressive_bce(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """bce with SegPGD's weights (arXiv 2207.12391, eq. 4): 1 - progress/2 where right, progress/2 where wrong."""
    margin = _margin(log_odds, target)
    return _mean(_progressive(_right(log_odds, target), progress) * F.softplus(-margin))


@register("cosine_bce", kind="objective")
def cosine_bce(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """bce with CosPGD's weights (arXiv 2302.02213), of each entry against its own complement.

    The paper's cosine runs over the classes of a pixel, which is 0 wherever no organ is; per entry it is that of
    (p, 1 - p) with the truth. Its gradient is even in the margin: entries near the boundary are pushed most.
    """
    margin = _margin(log_odds, target)
    true, wrong = torch.sigmoid(margin), torch.sigmoid(-margin)
    weight = true / (true.square() + wrong.square()).sqrt()
    return _mean(weight.detach() * F.softplus(-margin))


@register("masked_ce", kind="objective")
def masked_ce(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """ce of the pixels that are still right: masked_bce in its softmax form."""
    return _mean(_won(log_odds, target) * _nll(log_odds, target))


@register("balanced_ce", kind="objective")
def balanced_ce(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """masked_ce in which every class of the image weighs the same: balanced_bce in its softmax form."""
    loss = (_won(log_odds, target) * _nll(log_odds, target)).unsqueeze(1)
    per_class = (loss * target).flatten(2).sum(2) / target.flatten(2).sum(2).clamp(min=1)
    return per_class.mean(1)


@register("progressive_ce", kind="objective")
def progressive_ce(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """ce with SegPGD's weights, as published: progressive_bce in its softmax form."""
    return _mean(_progressive(_won(log_odds, target), progress) * _nll(log_odds, target))


@register("cosine_ce", kind="objective")
def cosine_ce(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """ce times the cosine of softmax and truth, as published (arXiv 2302.02213): cosine_bce in its softmax form."""
    p = torch.sigmoid(log_odds)
    weight = (p * target).sum(1) / (p.square().sum(1) + 1e-12).sqrt()
    return _mean(weight.detach() * _nll(log_odds, target))


@register("js_softmax", kind="objective")
def js_softmax(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Jensen-Shannon divergence of softmax and truth, per pixel: of all classes it depends on the true one alone."""
    return _mean((_js(log_odds) * target).sum(1))


@register("margin_softmax", kind="objective")
def margin_softmax(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """The best other class's logit less the true one's, mean over pixels."""
    true, best, *_ = _contest(log_odds, target)
    return _mean(best - true)


@register("spherical", kind="objective")
def spherical(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Minus the true logit over the length of the pixel's logits, which are centred first: blind to their scale.

    The released code takes raw logits, on which an addition to all of them has an effect that no probability shows.
    """
    return _mean(_spherical(log_odds, target))


@register("masked_spherical", kind="objective")
def masked_spherical(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """spherical of the pixels that are still right (arXiv 2306.12941): masked_margin in its softmax form."""
    return _mean(_won(log_odds, target) * _spherical(log_odds, target))


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
    true, best, logits = _contest(log_odds, target)
    top = logits.topk(3, dim=1).values
    return _mean((best - true) / (top[:, 0] - top[:, 2] + 1e-12))


SOFTMAX_FORM: dict[Objective, Objective] = {
    js: js_softmax,
    masked_bce: masked_ce,
    balanced_bce: balanced_ce,
    masked_margin: masked_spherical,
    progressive_bce: progressive_ce,
    cosine_bce: cosine_ce,
}
EXCLUSIVE_ONLY = (*SOFTMAX_FORM.values(), margin_softmax, spherical, dlr)
UNMASKED: dict[Objective, Objective] = {
    masked_bce: bce,
    masked_ce: ce,
    balanced_bce: bce,
    balanced_ce: ce,
    progressive_bce: bce,
    progressive_ce: ce,
    masked_margin: margin,
    masked_spherical: spherical,
}


def suited(objective: Objective, task: Task) -> Objective:
    """The form of an objective that this task is attacked with: the softmax form, if classes exclude each other.

    One that climbs another, such as `toward`, climbs the form of that.

    Raises:
        InputError: the objective compares classes that exclude each other, and these may overlap.
    """
    climbed: Objective | None = getattr(objective, "objective", None)
    if climbed is not None:
        return cast(Objective, replace(cast(Any, objective), objective=suited(climbed, task)))
    if task.exclusive:
        return SOFTMAX_FORM.get(objective, objective)
    if (objective.function if isinstance(objective, Bound) else objective) in EXCLUSIVE_ONLY:
        entries = {softmax: form for form, softmax in SOFTMAX_FORM.items()}.get(objective, margin)
        raise InputError(
            f"expected an objective for classes that may overlap, as those of {task.name} do, got {spec(objective)}, "
            f"which compares a pixel's true class with the others; take {spec(entries)}"
        )
    return objective


def _js(margin: LogOdds) -> LogOdds:
    log_p, p, q = F.logsigmoid(margin), torch.sigmoid(margin), torch.sigmoid(-margin)
    return (math.log(2) - torch.log1p(p) + p * (math.log(2) + log_p - torch.log1p(p)) + q * math.log(2)) / 2


def _right(log_odds: LogOdds, target: Mask) -> LogOdds:
    return ((log_odds >= 0) == target).to(log_odds.dtype)


def _progressive(right: Tensor, progress: float) -> Tensor:
    share = progress / 2
    return right * (1 - share) + (1 - right) * share


PerPixel = Float[Tensor, "b *s"]


def _nll(log_odds: LogOdds, target: Mask) -> PerPixel:
    """-log p of the true class."""
    return (F.softplus(-log_odds) * target).sum(1)


def _won(log_odds: LogOdds, target: Mask) -> PerPixel:
    """1 where the true class has the largest log-odds."""
    true, best, _ = _contest(log_odds.detach(), target)
    return (true >= best).to(log_odds.dtype)


def _contest(log_odds: LogOdds, target: Mask) -> tuple[PerPixel, PerPixel, LogOdds]:
    """The true class's logit, the best other one's, and all of them, in their softmax gauge: log p."""
    logits = F.logsigmoid(log_odds)
    best = logits.masked_fill(target, -torch.inf).amax(1)
    return (logits * target).sum(1), best, logits


def _spherical(log_odds: LogOdds, target: Mask) -> PerPixel:
    logits = F.logsigmoid(log_odds)
    centred = logits - logits.mean(1, keepdim=True)
    return -(centred * target).sum(1) / (centred.square().sum(1) + 1e-12).sqrt()


def harm(pred: Mask, target: Mask) -> PerSample:
    """1 - Dice of hard masks, mean over classes; a class absent from both counts as right (the Judge of attacks)."""
    pred, target = pred.flatten(2), target.flatten(2)
    both, total = (pred & target).sum(2), pred.sum(2) + target.sum(2)
    dice = torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)
    return (1 - dice).mean(1)
