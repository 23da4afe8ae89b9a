"""Training in which one gradient serves the weights and the perturbation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import require
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Ball, Image


@register("free", kind="defence", cost="1 forward, 1 backward", attacked_with="strongest")
@dataclass(frozen=True)
class Free(TrainingDefence):
    """Each batch is used several times; a gradient moves weights and perturbation (Shafahi et al., arXiv 1904.12843).

    The perturbation is kept by the place in the batch, from one batch to the next. An epoch takes `replays` times as
    many optimiser steps; the default number of epochs is smaller by that.

    Attributes:
        replays: optimiser steps for each batch, 1 or more.
        step_size: length of one step of the perturbation, as a share of the ball, 0 or more.

    Raises:
        InputError: a field is out of range.
    """

    replays: int = 4
    ball: Ball = Linf(4 / 255)
    step_size: float = 1.0

    def __post_init__(self) -> None:
        require(self, replays=1, step_size=0)

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        kept = step.state.get("change")
        change = torch.zeros_like(image) if kept is None or kept.shape != image.shape else kept.to(image)
        change.requires_grad_()

        def update(grad: Tensor) -> None:
            moved = change.detach() + self.step_size * self.ball.step(grad, image)
            step.state["change"] = self.ball.clipped(moved)
            self.observe(grad, step.state)

        change.register_hook(update)  # type: ignore[no-untyped-call]
        return step.loss((image + change).clamp(0, 1), target)

    def observe(self, grad: Tensor, state: dict[str, Tensor]) -> None:
        """Keeps what the rule needs to know of a batch's gradient by the perturbation: nothing."""
