"""MedIS (Shukla et al., Multimedia Tools and Applications 2023): several losses, each case by the one that needs least.

The losses are as their sources mean them; `*_shukla2023` are as the released notebooks compute them: probabilities,
stretched to [0, 1] per image, are handed on as if they were logits, boundary weights cancel, and exp_log has its sign
wrong.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from medseg_attack.attacks.baselines import judged
from medseg_attack.attacks.minimal import Least, Moved, Search, check, slope, walk
from medseg_attack.balls import Linf
from medseg_attack.criteria import ByMiou, Criterion
from medseg_attack.errors import InputError
from medseg_attack.forms import suited
from medseg_attack.goals import Goal, Toward
from medseg_attack.objectives import bce, bce_dice
from medseg_attack.registry import About, register, spec
from medseg_attack.types import Adversarial, Ball, Image, LogOdds, Mask, Model, Objective, PerSample

Maps: TypeAlias = Float[Tensor, "b k *s"]
GAMMA, BOUNDARY = 2.0, 31  # of exp_log; pixels across the neighbourhood whose mean says how near a boundary is


@register("log_cosh_dice", kind="objective")
def log_cosh_dice(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """log cosh(1 - soft Dice) (arXiv 2006.14822)."""
    return _log_cosh_dice(torch.sigmoid(log_odds), target.to(log_odds.dtype))


@register("exp_log", kind="objective")
def exp_log(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Half (-log Dice)^2, half (-log p of the true side)^2, without class weights (arXiv 1809.00076)."""
    y = target.to(log_odds.dtype)
    of_dice = -_dice(torch.sigmoid(log_odds), y).log()
    of_entries = functional.softplus(-(2 * y - 1) * log_odds)
    return (of_dice**GAMMA).mean(1) / 2 + (of_entries**GAMMA).flatten(1).mean(1) / 2


@register("boundary_iou", kind="objective")
def boundary_iou(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """Cross-entropy and 1 - soft IoU, both with weights of up to 6 at boundaries (PraNet, arXiv 2006.11392)."""
    y = target.to(log_odds.dtype)
    weight = _near_boundary(y).flatten(2)
    entries = functional.softplus(-(2 * y - 1) * log_odds).flatten(2)
    return ((weight * entries).sum(2) / weight.sum(2)).mean(1) + _lost_iou(torch.sigmoid(log_odds), y)


@register("lovasz_hinge", kind="objective")
def lovasz_hinge(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """The Lovasz extension of 1 - IoU on hinges, per case and class (arXiv 1705.08790)."""
    return _lovasz(log_odds, target.to(log_odds.dtype))


@register("medis_combined", kind="objective")
def medis_combined(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """The five losses of MedIS in its proportions."""
    return _weighted(LOSSES, log_odds, target)


@register("log_cosh_dice_shukla2023", kind="objective")
def log_cosh_dice_shukla2023(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """log_cosh_dice on stretched probabilities."""
    return _log_cosh_dice(_stretched(log_odds), target.to(log_odds.dtype))


@register("bce_dice_shukla2023", kind="objective")
def bce_dice_shukla2023(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """bce_dice with stretched probabilities for logits: what it takes for a probability lies in [0.5, 0.731]."""
    p, y = _stretched(log_odds), target.to(log_odds.dtype)
    return bce(p, target) + (1 - _dice(torch.sigmoid(p), y)).mean(1)


@register("exp_log_shukla2023", kind="objective")
def exp_log_shukla2023(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """exp_log of what is lost instead of what is kept: it grows with Dice, and falls as cross-entropy grows below 1."""
    p, y = _stretched(log_odds), target.to(log_odds.dtype)
    of_dice = -(1 - _dice(p, y)).clamp(min=1e-7).log()
    return (of_dice**GAMMA).mean(1) / 2 + (-bce(p, target).log()) ** GAMMA / 2


@register("boundary_iou_shukla2023", kind="objective")
def boundary_iou_shukla2023(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """boundary_iou whose weights cancel in its cross-entropy, with stretched probabilities for logits."""
    p, y = _stretched(log_odds), target.to(log_odds.dtype)
    return bce(p, target) + _lost_iou(torch.sigmoid(p), y)


@register("lovasz_hinge_shukla2023", kind="objective")
def lovasz_hinge_shukla2023(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """lovasz_hinge with stretched probabilities for logits: organ pixels never pay less than nothing."""
    return _lovasz(_stretched(log_odds), target.to(log_odds.dtype))


@register("medis_combined_shukla2023", kind="objective")
def medis_combined_shukla2023(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """The five losses as released, in the same proportions."""
    return _weighted(RELEASED, log_odds, target)


LOSSES: dict[Objective, float] = {
    boundary_iou: 0.21, log_cosh_dice: 0.18, bce_dice: 0.20, exp_log: 0.15, lovasz_hinge: 0.26,
}  # fmt: skip
RELEASED: dict[Objective, float] = {
    boundary_iou_shukla2023: 0.21, log_cosh_dice_shukla2023: 0.18, bce_dice_shukla2023: 0.20,
    exp_log_shukla2023: 0.15, lovasz_hinge_shukla2023: 0.26,
}  # fmt: skip


def _weighted(losses: dict[Objective, float], log_odds: LogOdds, target: Mask) -> PerSample:
    return torch.stack([share * loss(log_odds, target) for loss, share in losses.items()]).sum(0)


def _stretched(log_odds: LogOdds) -> Maps:
    """Probabilities with each image's least at 0 and largest at 1."""
    p = torch.sigmoid(log_odds)
    flat = p.flatten(1)
    low, high = (end.view(-1, *(1 for _ in p.shape[1:])) for end in (flat.amin(1), flat.amax(1)))
    return (p - low) / (high - low + 1e-8)


def _dice(p: Maps, y: Maps) -> Float[Tensor, "b k"]:
    """Soft Dice, one pixel above and below."""
    p, y = p.flatten(2), y.flatten(2)
    return (2 * (p * y).sum(2) + 1) / (p.sum(2) + y.sum(2) + 1)


def _log_cosh_dice(p: Maps, y: Maps) -> PerSample:
    return torch.log(torch.cosh((1 - _dice(p, y)).mean(1)))


def _near_boundary(y: Maps) -> Maps:
    pool: Callable[..., Tensor] = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[y.ndim - 3]
    return 1 + 5 * (pool(y, BOUNDARY, stride=1, padding=BOUNDARY // 2) - y).abs()


def _lost_iou(p: Maps, y: Maps) -> PerSample:
    weight = _near_boundary(y).flatten(2)
    p, y = p.flatten(2), y.flatten(2)
    both, either = (weight * p * y).sum(2), (weight * (p + y - p * y)).sum(2)
    return (1 - (both + 1) / (either + 1)).mean(1)


def _lovasz(z: Maps, y: Maps) -> PerSample:
    errors, order = (1 - (2 * y - 1) * z).flatten(2).sort(2, descending=True)
    here = y.flatten(2).gather(2, order)
    there = here.sum(2, keepdim=True)
    lost = 1 - (there - here.cumsum(2)) / (there + (1 - here).cumsum(2))
    gain = torch.cat((lost[..., :1], lost[..., 1:] - lost[..., :-1]), 2)
    return (functional.relu(errors) * gain).sum(2).mean(1)


@register("igsm", kind="attack", about=About(paper="Shukla et al., Multimedia Tools and Applications 2023"))
@dataclass(frozen=True)
class Igsm(Least):
    """Steps along the signs until the case succeeds: MedIS with one loss (Shukla et al. 2023).

    Updates are counted, so that the change is step_size times their number; the published step count is one more.

    Attributes:
        step_size: of one step, absolute.
    """

    ball: Ball = Linf(10 / 255)
    objective: Objective = bce
    goal: Goal | None = None
    success: Criterion = ByMiou()
    steps: int = 10
    step_size: float = 1 / 255

    def __post_init__(self) -> None:
        check(self, "linf", "l2", "l0")
        if not self.step_size > 0:
            raise InputError(f"expected step_size > 0, got {self.step_size:g}; check the attack")

    def search(self, found: Search) -> tuple[Adversarial, Tensor]:
        goal = found.aim.goal
        climbed = suited(self.objective if goal is None else Toward(self.objective, goal), found.aim.task)

        def move(x: Image, log_odds: LogOdds) -> Moved:
            return x + self.step_size * slope(climbed(log_odds, found.target), x).sign(), 1

        return walk(found, self.steps, move)


@register("least_of", kind="attack")
@dataclass(frozen=True)
class LeastOf:
    """Per case the least change that any of several attacks succeeds with (parallel fusion as in MedIS).

    It succeeds wherever one of them does; it costs what they cost together. Between equal changes the first decides.

    Attributes:
        attacks: that look for the least change, with the same norm and aim.
    """

    attacks: tuple[Any, ...] = (Igsm(objective=bce), Igsm(objective=bce_dice))

    def __post_init__(self) -> None:
        if not self.attacks or not all(hasattr(attack, "success") for attack in self.attacks):
            told = ", ".join(map(spec, self.attacks)) or "none"
            raise InputError(
                f"expected attacks with a criterion of success, such as igsm or dag, got {told}; change them"
            )
        norms = {spec(attack.ball) for attack in self.attacks}
        if len(norms) > 1:
            raise InputError(f"expected attacks of one ball, got {', '.join(sorted(norms))}; their sizes must compare")
        if len({(attack.goal, attack.success) for attack in self.attacks}) > 1:
            raise InputError("expected attacks of one goal and criterion, got several; their successes must compare")

    @property
    def ball(self) -> Ball:
        ball: Ball = self.attacks[0].ball
        return ball

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        found = [attack(model, image, target, seeds) for attack in self.attacks]
        # success in the place of harm: "the more harmful, then the smaller" is then the least that succeeds
        best = reduce(or_, [replace(one, harm=one.success.to(one.harm)) for one in found])
        passes = None if best.passes is None else best.passes + torch.tensor([1, 0], device=image.device)
        again = judged(model, self.ball, best.image, image, target)
        return replace(again, success=best.success, passes=passes)


@register("medis", kind="attack", about=About(paper="Shukla et al., Multimedia Tools and Applications 2023"))
def medis(
    ball: Ball = Linf(10 / 255),
    goal: Goal | None = None,
    success: Criterion = ByMiou(),
    steps: int = 10,
    released: bool = False,
) -> LeastOf:
    """MedIS: its five losses and their sum run apart, per case the one that needs least (Shukla et al. 2023).

    released: the losses as the released notebooks compute them.
    """
    last = medis_combined_shukla2023 if released else medis_combined
    losses: list[Objective] = [*(RELEASED if released else LOSSES), last]
    return LeastOf(tuple(Igsm(ball, loss, goal, success, steps) for loss in losses))
