"""Training on images that all carry one perturbation, which is trained against the model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import require
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Ball, Image


@register("shared", kind="defence", cost="1 forward, 1 backward", attacked_with="best_of((uap, strongest))")
@dataclass(frozen=True)
class Shared(TrainingDefence):
    """The training loss of images with one perturbation for all (Mummadi et al., arXiv 1812.03705).

    Every step moves it, along the gradient that also moves the weights. It helps against universal perturbations, and
    little against those of each image.

    Attributes:
        step_size: length of one step of the perturbation, as a share of the ball, 0 or more.

    Raises:
        InputError: `step_size` is below 0.
    """

    ball: Ball = Linf(8 / 255)
    step_size: float = 0.25

    def __post_init__(self) -> None:
        require(self, step_size=0)

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        kept = step.state.get("change")
        change = torch.zeros_like(image[:1]) if kept is None or kept.shape[1:] != image.shape[1:] else kept.to(image)
        change.requires_grad_()

        def update(grad: Tensor) -> None:
            moved = change.detach() + self.step_size * self.ball.step(grad, image[:1])
            step.state["change"] = self.ball.clipped(moved)

        change.register_hook(update)  # type: ignore[no-untyped-call]
        return step.loss((image + change).clamp(0, 1), target)
