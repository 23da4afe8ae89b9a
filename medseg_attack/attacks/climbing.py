"""Attacks that climb an objective in a ball, and one step of an ascent."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.attacks.judging import judge_prediction
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.types import Adversarial, Ball, Image, LogOdds, Mask, Model, Objective, PerSample


@dataclass(frozen=True)
class Climbing:
    """An attack that climbs an objective in a ball: the first two fields of such attacks."""

    ball: Ball = Linf()
    objective: Objective = bce

    def climbed(self, model: Model) -> Objective:
        """The form of the objective that is climbed on the model's task."""
        return for_task(self.objective, model.task)


def visit(
    model: Model, ball: Ball, objective: Objective, x: Image, image: Image, target: Mask, progress: float
) -> tuple[Adversarial, LogOdds, PerSample, Image]:
    """The perturbed image `x` with its harm, log-odds on it, the objective there, and its gradient by `x`."""
    log_odds, height, grad = climb(model, objective, x, target, progress)
    return judge_prediction(model, ball, x, image, model.decide(log_odds), target), log_odds, height, grad


def climb(
    model: Callable[[Image], LogOdds], objective: Objective, x: Image, target: Mask, progress: float
) -> tuple[LogOdds, PerSample, Image]:
    """Log-odds at `x`, the objective there, and its gradient by `x`."""
    x = x.detach().requires_grad_()
    log_odds = model(x)
    height = objective(log_odds, target, progress)
    (grad,) = torch.autograd.grad(height.sum(), x)
    return log_odds.detach(), height.detach(), grad


def slopes(
    model: Callable[[Image], LogOdds],
    objectives: Sequence[Objective],
    x: Image,
    target: Mask,
    progress: float,
    look: Callable[[LogOdds], None] | None = None,
) -> Iterator[Image]:
    """The gradient of each objective by `x`, from one forward pass, which stays in memory until the last of them.

    Unlike `climb`, it keeps no log-odds while a gradient is computed, which are a volume or more.

    Args:
        look: called with the log-odds before the first gradient is computed, so that what it drops is not in memory
            then.
    """

    def heights(log_odds: LogOdds) -> list[Tensor]:
        if look is not None:
            look(log_odds.detach())
        return [objective(log_odds, target, progress).sum() for objective in objectives]

    x = x.detach().requires_grad_()
    pending = heights(model(x))
    while pending:
        yield torch.autograd.grad(pending.pop(0), x, retain_graph=bool(pending))[0]
