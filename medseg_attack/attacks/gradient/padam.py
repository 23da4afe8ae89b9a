"""Projected Adam: every pixel has a step size of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.climbing import Climbing, visit
from medseg_attack.attacks.judging import judge
from medseg_attack.errors import require
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import even_change
from medseg_attack.types import Adversarial, Image, Mask, Model

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's decay of gradients and of their squares, and its epsilon


@register(
    "padam", kind="attack", cost="steps + 2 forward, steps backward", reaches="all in eps", shown_by="padam(steps=20)"
)
@dataclass(frozen=True)
class PAdam(Climbing):
    """Gradient ascent with Adam in place of signed steps; the worst iterate (Halmosi et al., arXiv 2407.01982).

    Adam is that of AMSGrad (arXiv 1904.09237), per pixel, so that a sample's steps do not depend on other samples.

    Attributes:
        step_size: Adam's learning rate as a share of the largest change of a pixel, 0 or more (`even_change`); the
            published 2/255 in a ball of 8/255 is 0.25.

    Raises:
        InputError: a field is out of range.
    """

    steps: int = 200
    step_size: float = 0.25

    def __post_init__(self) -> None:
        require(self, steps=1, step_size=0)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        objective = self.climbed(model)
        worst = judge(model, self.ball, image, image, target)
        x = self.ball.sample(image, seeds)
        mean, square, largest = (torch.zeros_like(image) for _ in range(3))
        for step in range(self.steps):
            judged, _, _, grad = visit(model, self.ball, objective, x, image, target, step / self.steps)
            worst |= judged
            mean = BETA1 * mean + (1 - BETA1) * grad
            square = BETA2 * square + (1 - BETA2) * grad.square()
            largest = torch.maximum(largest, square)
            mean_unbiased = mean / (1 - BETA1 ** (step + 1))
            deviation = (largest / (1 - BETA2 ** (step + 1))).sqrt() + EPSILON
            x = self.ball.project(x + self.step_size * even_change(self.ball, image) * mean_unbiased / deviation, image)
        return worst | judge(model, self.ball, x, image, target)
