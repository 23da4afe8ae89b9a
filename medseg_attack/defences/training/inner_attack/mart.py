"""Training on perturbed images with a margin, and with more weight where the clean answer is wrong."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.defences.training.inner_attack.multi_perturbation import doubt
from medseg_attack.errors import require
from medseg_attack.numerics.log_odds import divergence
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Ball, Image, LogOdds

ABOVE = 1.0001  # from which the largest wrong probability is subtracted, so that its logarithm is finite


@register("mart", kind="defence", cost="steps + 3 forward, steps + 2 backward", attacked_with="strongest")
@dataclass(frozen=True)
class Mart(TrainingDefence):
    """The training loss of perturbed images plus a margin, and the divergence from clean to perturbed answers.

    The margin is `-log(1.0001 - p)` of the most probable wrong answer. An entry of the divergence weighs as much as the
    clean answer doubts the truth there (Wang et al., ICLR 2020). Both are means over pixels and sums over organs that
    may overlap; the gradient goes through both answers. The training loss stands for the paper's cross-entropy.

    Attributes:
        beta: weight of the divergence, 0 or more; the paper's code has 6.
        steps: gradient steps towards the perturbed image, 1 or more, from a random point of the ball.

    Raises:
        InputError: a field is out of range.
    """

    beta: float = 6.0
    ball: Ball = Linf(4 / 255)
    steps: int = 5

    def __post_init__(self) -> None:
        require(self, beta=0, steps=1)

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        attack = PGD(self.ball, steps=self.steps, step_size=2.5 / self.steps, keep_worst=False)
        perturbed, _ = step.attacked(attack, image, target)
        clean, exclusive = step.log_odds(image), step.model.task.exclusive

        def aware(log_odds: LogOdds, truth: Tensor) -> Tensor:
            moved = divergence(clean, log_odds, exclusive, doubt(clean, truth, exclusive))
            wrong = margin_loss(log_odds, truth, exclusive)
            return step.criterion(log_odds, truth) + wrong.mean() + self.beta * moved.mean()

        return replace(step, criterion=aware).loss(perturbed, target)


def margin_loss(log_odds: LogOdds, target: Tensor, exclusive: bool) -> Float[Tensor, "b *s"]:
    """The loss `-log(1.0001 - p)` of each pixel's most probable wrong answer; of organs that may overlap, their sum.

    >>> log_odds = torch.tensor([0.5, 0.3, 0.2]).logit().view(1, 3, 1)
    >>> f"{margin_loss(log_odds, torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1), True).item():.6f}"
    '0.356532'
    """
    p = torch.sigmoid(log_odds)
    wrong = (p * (1 - target)).amax(1) if exclusive else torch.where(target > 0.5, 1 - p, p)
    terms = -torch.log(ABOVE - wrong)
    return terms if exclusive else terms.sum(1)
