"""Training on clean images that pulls the answers on perturbed ones towards those on clean ones."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import require
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics.log_odds import divergence
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Ball, Image, LogOdds, Mask, PerSample


@register("trades", kind="defence", cost="steps + 4 forward, steps + 2 backward", attacked_with="strongest")
@dataclass(frozen=True)
class Trades(TrainingDefence):
    """The training loss on clean images plus `beta` times the divergence from clean to perturbed answers.

    Perturbed images are those whose answers PGD moves furthest, whatever the truth (Zhang et al., arXiv 1901.08573).
    The divergence is a mean over pixels and a sum over organs that may overlap; its gradient goes through both sides.

    Attributes:
        beta: weight of the divergence, 0 or more; the paper has 6 for classification.
        steps: gradient steps towards the perturbed image, 1 or more, from a random point of the ball.
        balanced: whether a pixel weighs 1 / sqrt(share of the class that is predicted there), so that small organs
            count; the mean weight is 1.

    Raises:
        InputError: a field is out of range.
    """

    beta: float = 6.0
    ball: Ball = Linf(4 / 255)
    steps: int = 5
    balanced: bool = True

    def __post_init__(self) -> None:
        require(self, beta=0, steps=1)

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        if self.beta == 0:
            return step.loss(image, target)
        model, exclusive = step.model, step.model.task.exclusive
        with frozen(model), torch.no_grad():
            clean = model(image)

        def moved_away(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
            return divergence(clean, log_odds, exclusive).flatten(1).mean(1)

        attack = PGD(self.ball, moved_away, self.steps, 2.5 / self.steps, keep_worst=False)
        perturbed, _ = step.attacked(attack, image, target)

        def regularised(log_odds: LogOdds, truth: Tensor) -> Tensor:
            weights = balance(model, log_odds.detach()) if self.balanced else None
            moved = divergence(log_odds, step.log_odds(perturbed), exclusive, weights)
            return step.criterion(log_odds, truth) + self.beta * moved.mean()

        return replace(step, criterion=regularised).loss(image, target)


def balance(model: SegModel, log_odds: LogOdds) -> Tensor:
    """Weights of entries, (b, k, *s), 1 / sqrt(share of their predicted class), of mean 1 over the pixels.

    Of classes that exclude each other all entries of a pixel weigh alike.
    """
    decided = model.decide(log_odds)
    axes = (0, *range(2, decided.ndim))
    share = decided.float().mean(axes, keepdim=True)
    if model.task.exclusive:
        weights = (decided / share.clamp(min=1 / decided.numel()).sqrt()).sum(1, keepdim=True).expand_as(log_odds)
    else:
        weights = torch.where(decided, share, 1 - share).clamp(min=1 / decided.numel()).rsqrt()
    return weights / weights.mean(axes, keepdim=True)
