"""Training with a penalty on the gradient of the loss by the image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import require
from medseg_attack.registry import register
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.types import Image, Objective, PerSample

NORMS = ("l1", "l2")


@register("gradient_penalty", kind="defence", cost="2 forward, 3 backward", attacked_with="strongest")
@dataclass(frozen=True)
class GradientPenalty(TrainingDefence):
    """The training loss plus `weight` times a norm of the input gradient (Ross & Doshi-Velez, arXiv 1711.09404).

    The gradient is that of each image's objective. It flattens the loss close to the image, which may be curved beyond.

    Attributes:
        norm: "l1" penalises the sum of magnitudes, which bounds what linf can do to first order; "l2" the square of
            the length times the number of values, so that both do not depend on the grid.
        objective: function of one image whose gradient is penalised.

    Raises:
        InputError: `weight` is below 0, or there is no such norm.
    """

    weight: float = 0.1
    norm: str = "l1"
    objective: Objective = bce

    def __post_init__(self) -> None:
        require(self, weight=0, norm=NORMS)

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        if self.weight == 0:
            return step.loss(image, target)
        x = image.detach().requires_grad_()
        height = for_task(self.objective, step.model.task)(step.model(x), target > 0.5)
        (grad,) = torch.autograd.grad(height.sum(), x, create_graph=True)
        return step.loss(image, target) + self.weight * penalty(grad, self.norm).mean()


def penalty(grad: Image, norm: str) -> PerSample:
    """The penalised size of each image's gradient."""
    flat = grad.flatten(1)
    return flat.abs().sum(1) if norm == "l1" else flat.square().sum(1) * flat.shape[1]
