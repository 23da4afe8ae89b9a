"""The harm of a perturbed image on the classes that tables report, and the size of its change in its ball."""

from collections.abc import Callable

import torch

from medseg_attack.metrics.harm import harm
from medseg_attack.types import Adversarial, Ball, Flow, Image, LogOdds, Mask, Model, Objective, PerSample


def judge(model: Model, ball: Ball, x: Image, image: Image, target: Mask) -> Adversarial:
    """The perturbed image `x` with its harm and the size of its change from `image`; one forward pass."""
    with torch.no_grad():
        pred = model.decide(model(x))
    return judge_prediction(model, ball, x, image, pred, target)


def judge_prediction(
    model: Model, ball: Ball, x: Image, image: Image, pred: Mask, target: Mask, flow: Flow | None = None
) -> Adversarial:
    """The perturbed image `x` with its harm and size, where its prediction `pred` is already known.

    Args:
        flow: how anatomy moved; `image` and `target` are then those after the flow.
    """
    classes, x = list(model.task.scored), x.detach()
    return Adversarial(x, harm(pred[:, classes], target[:, classes]).to(x), ball.total_size(x, image, flow), flow)


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
