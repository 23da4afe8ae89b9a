"""Innocent changes of one number, such as a blur: visible, of no attacker, and as harmful as they are."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from medseg_attack.attacks.judging import judge
from medseg_attack.errors import require
from medseg_attack.numerics.samples import widen
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model, PerSample

C = TypeVar("C", bound="OneLevel")


@dataclass(frozen=True)
class OneLevel(ABC):
    """A change that one number describes: at the ball's budget, or at the least one that halves the Dice.

    Attributes:
        ball: bound of the number.
        bisections: bisections in search of the least change that halves the Dice, 0 or more; 0 makes the whole change.
    """

    ball: Ball
    bisections: int = 0

    def __post_init__(self) -> None:
        require(self, bisections=0)

    @abstractmethod
    def changed(self, image: Image, level: PerSample) -> Image:
        """The images, each changed by its own level."""

    def control(self: C) -> C:
        """Itself: it is a control already."""
        return self

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        high = image.new_full((len(image),), self.ball.eps, dtype=torch.float64)
        best = self._judged(model, image, target, high)
        if self.bisections == 0:
            return best
        low, dice = torch.zeros_like(high), 1 - judge(model, self.ball, image, image, target).harm
        for _ in range(self.bisections):
            middle = (low + high) / 2
            trial = self._judged(model, image, target, middle)
            halved = 1 - trial.harm <= dice / 2
            best = best.where(halved, trial)
            low, high = torch.where(halved, low, middle), torch.where(halved, middle, high)
        return best

    def _judged(self, model: Model, image: Image, target: Mask, level: PerSample) -> Adversarial:
        x = torch.where(widen(level > 0, image), self.changed(image, level), image)
        return judge(model, self.ball, self.ball.project(x, image), image, target)
