"""Projected Adam: every pixel finds its own step size."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.gradient.input_diversity import reach
from medseg_attack.attacks.judging import judge, judge_prediction
from medseg_attack.errors import require
from medseg_attack.registry import About, register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model, Objective

FIRST, SECOND, LEAST = 0.9, 0.999, 1e-8  # Adam's memories of gradients and of their squares, and its epsilon


@register("padam", kind="attack", about=About(reaches="all in eps", shown_by="padam(steps=20)"))
@dataclass(frozen=True)
class PAdam:
    """Adam on the perturbation (Halmosi et al., arXiv 2407.01982), keeping each sample's worst iterate.

    AMSGrad (doi 10.48550/arXiv.1904.09237), per pixel, so that a sample's steps are its own.

    Attributes:
        step_size: Adam's learning rate, as a fraction of what every pixel may move by (2/255 of 8/255 as published).
    """

    ball: Ball = Linf()
    objective: Objective = bce
    steps: int = 200
    step_size: float = 0.25

    def __post_init__(self) -> None:
        require(self, steps=1, step_size=0)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        objective = for_task(self.objective, model.task)
        best = judge(model, self.ball, image, image, target)
        x = self.ball.sample(image, seeds)
        mean, square, largest = (torch.zeros_like(image) for _ in range(3))
        for step in range(self.steps):
            x = x.detach().requires_grad_()
            log_odds = model(x)
            (grad,) = torch.autograd.grad(objective(log_odds, target, step / self.steps).sum(), x)
            x = x.detach()
            best |= judge_prediction(model, self.ball, x, image, model.decide(log_odds.detach()), target)
            mean = FIRST * mean + (1 - FIRST) * grad
            square = SECOND * square + (1 - SECOND) * grad.square()
            largest = torch.maximum(largest, square)
            rise = mean / (1 - FIRST ** (step + 1))
            spread = (largest / (1 - SECOND ** (step + 1))).sqrt() + LEAST
            x = self.ball.project(x + self.step_size * reach(self.ball, x) * rise / spread, image)
        return best | judge(model, self.ball, x, image, target)
