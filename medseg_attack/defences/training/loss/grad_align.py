"""Training with a penalty on input gradients that turn within the ball."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import require
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.types import Ball, Image, Objective


@register("grad_align", kind="defence", cost="3 forward, 5 backward", attacked_with="strongest")
@dataclass(frozen=True)
class GradAlign(TrainingDefence):
    """The training loss plus `weight` times the turn of the input gradient between an image and a point of its ball.

    The turn is 1 less the cosine of both gradients (Andriushchenko & Flammarion, arXiv 2007.02617). Single steps stay
    useful where it is small, so it keeps `fast` from overfitting to them: `--defence grad_align --defence fast`.

    Attributes:
        weight: 0 or more; the paper has 0.2 to 2, more for larger balls.
        ball: where the second point is drawn, one for each image.
        objective: function of one image whose gradient is taken.

    Raises:
        InputError: `weight` is below 0.
    """

    weight: float = 0.2
    ball: Ball = Linf(4 / 255)
    objective: Objective = bce

    def __post_init__(self) -> None:
        require(self, weight=0)

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        if self.weight == 0:
            return step.loss(image, target)
        x = image.detach()
        grads = [self._gradient(step, point, target) for point in (x, self.ball.sample(x, step.seeds))]
        return step.loss(image, target) + self.weight * turn(*grads)

    def _gradient(self, step: Step, image: Image, target: Tensor) -> Image:
        x = image.requires_grad_()
        height = for_task(self.objective, step.model.task)(step.model(x), target > 0.5)
        (grad,) = torch.autograd.grad(height.sum(), x, create_graph=True)
        return grad


def turn(grad: Image, other: Image) -> Tensor:
    """1 less the mean cosine between two gradients, over the images of which neither is 0; 0 without any."""
    first, second = grad.flatten(1), other.flatten(1)
    has_both = (first.detach() != 0).any(1) & (second.detach() != 0).any(1)
    if not has_both.any():
        return (first.sum() + second.sum()) * 0
    return 1 - cosine_similarity(first[has_both], second[has_both], dim=1, eps=1e-30).mean()
