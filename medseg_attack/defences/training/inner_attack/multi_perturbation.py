"""Training on attacks of several budgets and lengths, with more weight where the model is unsure."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.log_odds import divergence
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Image, LogOdds


@register("multi_perturbation", kind="defence", cost="steps + 3 forward, steps + 2 backward", attacked_with="strongest")
@dataclass(frozen=True)
class MultiPerturbation(TrainingDefence):
    """The training loss of images that PGD perturbs with another budget and length in every step.

    Plus `beta` times the divergence from clean to perturbed answers, in which an entry weighs as much as the clean
    answer doubts the truth there (Xu et al., Medical Image Analysis 2021; the term is that of Wang et al., ICLR 2020).

    Attributes:
        eps: budgets of linf, of which each batch draws one.
        steps: numbers of gradient steps, of which each batch draws one, 1 or more.
        beta: weight of the divergence, 0 or more.

    Raises:
        InputError: `beta` is below 0, or there is no budget or no whole number of steps from 1.
    """

    eps: tuple[float, ...] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    steps: tuple[int, ...] = (1, 3, 7)
    beta: float = 6.0

    def __post_init__(self) -> None:
        require(self, beta=0)
        if not self.eps or not self.steps or any(type(n) is not int or n < 1 for n in self.steps):
            raise InputError(
                f"expected budgets and whole numbers of steps from 1, got eps={self.eps}, steps={self.steps}; write "
                "such as eps=(4/255, 8/255), steps=(1, 3)"
            )

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        eps, steps = self.eps[step.seeds[0] % len(self.eps)], self.steps[step.seeds[-1] // 7 % len(self.steps)]
        attack = PGD(Linf(eps), steps=steps, step_size=1.25 if steps == 1 else 2.5 / steps, keep_worst=False)
        perturbed, _ = step.attacked(attack, image, target)
        if self.beta == 0:
            return step.loss(perturbed, target)
        clean, exclusive = step.log_odds(image), step.model.task.exclusive

        def aware(log_odds: LogOdds, truth: Tensor) -> Tensor:
            moved = divergence(clean, log_odds, exclusive, doubt(clean, truth, exclusive))
            return step.criterion(log_odds, truth) + self.beta * moved.mean()

        return replace(step, criterion=aware).loss(perturbed, target)


def doubt(log_odds: LogOdds, target: Tensor, exclusive: bool) -> Tensor:
    """One minus the probability of the truth, for each entry, or for each pixel where classes exclude each other."""
    p = torch.sigmoid(log_odds)
    if exclusive:
        return 1 - (p * target).sum(1, keepdim=True)
    return torch.where(target > 0.5, 1 - p, p)
