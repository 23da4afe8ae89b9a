"""Training that makes the wrong classes of a pixel alike."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import InputError, require
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import register
from medseg_attack.types import Image, LogOdds


@register("guided_complement", kind="defence", cost="1 forward, 1 backward", attacked_with="strongest")
@dataclass(frozen=True)
class GuidedComplement(TrainingDefence):
    """Guided complement entropy in place of the training loss (Chen et al., ICCV 2019, arXiv 1903.09799).

    Three classes or more must exclude each other. It raises the true class and makes the others alike. It is a
    control: a margin attack removes most of its effect.

    Attributes:
        exponent: of the true class's probability, by which a pixel weighs, 0 or more.

    Raises:
        InputError: `exponent` is below 0, or the task has not three classes that exclude each other.
    """

    exponent: float = 1 / 3

    def __post_init__(self) -> None:
        require(self, exponent=0)

    def prepare(self, model: SegModel) -> None:
        task = model.task
        if not task.exclusive or len(task.classes) < 3:
            kind = "exclude each other" if task.exclusive else "may overlap"
            raise InputError(
                f"expected three classes or more that exclude each other for guided_complement, got "
                f"{len(task.classes)} that {kind}; take another --defence"
            )

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        def criterion(log_odds: LogOdds, truth: Tensor) -> Tensor:
            return guided_complement(log_odds, truth, self.exponent)

        return replace(step, criterion=criterion).loss(image, target)


def guided_complement(log_odds: LogOdds, target: Tensor, exponent: float) -> Tensor:
    """The mean over pixels of `p_true^exponent` times the negative entropy of the other classes over log K."""
    log_p = functional.logsigmoid(log_odds)
    log_true = (log_p * target).sum(1, keepdim=True)
    log_rest = functional.logsigmoid(-(log_odds * target).sum(1, keepdim=True))
    log_q = (log_p - log_rest).masked_fill(target > 0.5, 0.0)  # 0 adds nothing to the sum, nor to its gradient
    entropy = -(log_q.exp() * log_q).sum(1, keepdim=True)
    pixels: Tensor = torch.exp(exponent * log_true) * entropy / math.log(log_odds.shape[1])
    return -pixels.mean()
