"""Criteria: rules on hard masks that say when an attack succeeded, each stated for both directions.

A rule gives the progress of an attack, in [0, 1]: 1 is success. As the judge of an attack it is capped, so that
"the more harmful, then the smaller" keeps the least perturbation that succeeds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.metrics.overlap import dice, iou
from medseg_attack.registry import register
from medseg_attack.types import Mask, PerSample, Task


@runtime_checkable
class Criterion(Protocol):
    """The progress of an attack: a number in [0, 1] for each sample, of which 1 is success."""

    def away(self, pred: Mask, truth: Mask, task: Task) -> PerSample:
        """Progress away from the truth."""
        ...

    def near(self, pred: Mask, goal: Mask, task: Task) -> PerSample:
        """Progress towards the goal."""
        ...


@register("by_pixels", kind="criterion")
@dataclass(frozen=True)
class ByPixels:
    """At least a share of the pixels is adversarial: other than the truth, or as the goal wants (as adv_lib counts).

    Classes that may overlap are counted one by one and the least of them decides: over all entries together, organs
    that are absent would make the share cheap or dear. 99 % away from a truth is nearly its inverse: much more than a
    Dice of 0.

    Attributes:
        share: of the pixels, above 0 and up to 1.
    """

    share: float = 0.99

    def __post_init__(self) -> None:
        _check_share("share", self.share, self.share)

    def away(self, pred: Mask, truth: Mask, task: Task) -> PerSample:
        return _capped(_least(~_agreeing(pred, truth, task)), self.share)

    def near(self, pred: Mask, goal: Mask, task: Task) -> PerSample:
        return _capped(_least(_agreeing(pred, goal, task)), self.share)


@register("by_dice", kind="criterion")
@dataclass(frozen=True)
class ByDice:
    """Mean Dice over the classes that tables report: at most `below` with the truth, or at least `above` with the goal.

    A class in neither mask agrees.

    Attributes:
        below: Dice with the truth, from 0 to below 1.
        above: Dice with the goal, above 0 and up to 1.
    """

    below: float = 0.5
    above: float = 0.9

    def __post_init__(self) -> None:
        _check_share("above", self.above, self.above)
        _check_share("below", self.below, 1 - self.below)

    def away(self, pred: Mask, truth: Mask, task: Task) -> PerSample:
        return _capped(1 - self.agreement(pred, truth, task), 1 - self.below)

    def near(self, pred: Mask, goal: Mask, task: Task) -> PerSample:
        return _capped(self.agreement(pred, goal, task), self.above)

    def agreement(self, a: Mask, b: Mask, task: Task) -> PerSample:
        """The agreement of two masks of each sample, in [0, 1]."""
        return _mean(dice, a, b, task)


@register("by_miou", kind="criterion")
@dataclass(frozen=True)
class ByMiou(ByDice):
    """Mean IoU, as MedIS counts it: at most `below` with the truth, or at least `above` with the goal.

    The mean runs over the classes that tables report, and over each class and its complement. The thresholds admit
    trivial wins: two disjoint masks of 5 % of the image agree by 0.45. So read it beside the share that the clean
    images reach.

    Attributes:
        below: IoU with the truth, from 0 to below 1.
        above: IoU with the goal, above 0 and up to 1.
    """

    above: float = 0.45

    def agreement(self, a: Mask, b: Mask, task: Task) -> PerSample:
        return (_mean(iou, a, b, task) + _mean(iou, ~a, ~b, task)) / 2


def _agreeing(a: Mask, b: Mask, task: Task) -> Bool[Tensor, "b n *s"]:
    """Marks the entries that agree; a pixel of an exclusive task is one entry."""
    return (a == b).all(1, keepdim=True) if task.exclusive else a == b


def _least(adversarial: Bool[Tensor, "b n *s"]) -> PerSample:
    """The share of entries that are marked, in the class where it is least."""
    return adversarial.flatten(2).double().mean(2).amin(1)


def _mean(score: Callable[..., Tensor], a: Mask, b: Mask, task: Task) -> PerSample:
    """Dice or IoU, mean over the classes that tables report; 1 for a class in neither."""
    classes = list(task.scored)
    return score(a[:, classes], b[:, classes], empty=1.0, dtype=torch.float64).mean(1)


def _capped(value: Tensor, goal: float) -> PerSample:
    """1 where the goal is reached, to within what float64 adds to a mean of counts."""
    return torch.where(value >= goal * (1 - 1e-12), 1.0, value / goal)


def _check_share(name: str, value: float, distance: float) -> None:
    """Refuses a threshold whose distance from the start is not above 0 and up to 1."""
    if not 0 < distance <= 1:
        raise InputError(
            f"expected a share for {name} that is not reached from the start, got {value:g}; write {name}=0.5"
        )
