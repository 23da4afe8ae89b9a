"""Attacks that take turns: up the objective, then down a detector's score, neither at the price of the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

from medseg_attack.attacks.evading.watched import Evader, WatchedModel
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.errors import InputError
from medseg_attack.numerics.samples import TINY, widen
from medseg_attack.registry import register
from medseg_attack.types import Attack, Image, LogOdds, Mask, Objective, PerSample


@register(
    "orthogonal",
    kind="attack",
    paper="Bryniarski et al., arXiv 2106.15023",
    cost="attack forward, attack backward",
    reaches="all in eps",
    shown_by="orthogonal(attack=pgd(steps=8))",
)
@dataclass(frozen=True)
class Orthogonal(Evader):
    """Orthogonal PGD: steps up the objective along which a detector's score stays, and down it (arXiv 2106.15023).

    Until a sample has lost its share of Dice, and again while it raises no alarm, the objective is climbed along its
    gradient less the part along the score's. Where a harmed sample raises an alarm, the score is lowered along its
    gradient less the part along the objective's. So neither undoes the other, and there is no weight to be swept
    (Bryniarski et al., ICLR 2022). What is kept is the most harmful image without an alarm.

    Attributes:
        detector: one that was fitted and calibrated, such as saved('FILE'); None: the attack itself.
        share: of a sample's untouched Dice that it must have lost before its score is lowered, in (0, 1].
        projected: False takes each gradient as it is (the selective form of the paper).

    Raises:
        InputError: `share` is out of range, the detector was not fitted, or the attack moves anatomy.
    """

    share: float = 0.5
    projected: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise InputError(
                f"expected a share above 0 and up to 1 for orthogonal, got {self.share:g}; write share=0.5"
            )

    def climbs(self, watched: WatchedModel) -> Sequence[Callable[[Objective], Objective]]:
        return [partial(InTurns, watched=watched, share=self.share, projected=self.projected)]


@register(
    "selective",
    kind="attack",
    paper="Bryniarski et al., arXiv 2106.15023",
    cost="attack forward, attack backward",
    reaches="all in eps",
    shown_by="selective(attack=pgd(steps=8))",
)
def selective(attack: Attack = PGD(), detector: object = None, share: float = 0.5) -> Orthogonal:
    """Selective PGD: steps up the objective, or down a detector's score where a harmed sample raises an alarm.

    `orthogonal` without the projection (Bryniarski et al., arXiv 2106.15023). `share` is that of a sample's untouched
    Dice that it must have lost before its score is lowered.
    """
    return Orthogonal(attack, detector, share, projected=False)


@dataclass(frozen=True, eq=False)
class InTurns:
    """A height whose slope is that of an objective, or of a detector's score downwards, sample by sample."""

    height: Objective
    watched: WatchedModel
    share: float
    projected: bool

    def __call__(self, log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
        height, x = self.height(log_odds, target, progress), self.watched.point
        if x is None or not x.requires_grad or not log_odds.requires_grad:
            return height
        excess = self.watched.excess
        up = _slope(height, x)
        down = -_slope(excess, x)
        lowers = (self.watched.taken >= self.share) & (excess > 0)
        if self.projected:
            up, down = _without(up, down), _without(down, up)
        direction = torch.where(widen(lowers, x), down, up)
        value = torch.where(lowers, -excess.to(height), height).detach()
        return value + ((x - x.detach()) * direction).flatten(1).sum(1).to(value)


def _slope(height: PerSample, x: Image) -> Image:
    """The gradient by each sample; 0 where it does not depend on it."""
    if not height.requires_grad:
        return torch.zeros_like(x)
    (slope,) = torch.autograd.grad(height.sum(), x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if slope is None else slope


def _without(slope: Image, other: Image) -> Image:
    """The part of each sample's slope that is orthogonal to the other one."""
    unit = functional.normalize(other.flatten(1), dim=1, eps=TINY).view_as(other)
    return slope - widen((slope * unit).flatten(1).sum(1), slope) * unit
