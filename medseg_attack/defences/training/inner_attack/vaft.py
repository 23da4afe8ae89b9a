"""Training on images that are attacked in frequency, with a penalty if the answers' frequencies differ."""

from dataclasses import dataclass, replace

from torch import Tensor

from medseg_attack.attacks.physical.frequency import Vafa, dct
from medseg_attack.defences.training.base import Step, TrainingDefence, require_ready
from medseg_attack.errors import require
from medseg_attack.registry import register
from medseg_attack.types import Attack, Image, LogOdds


@register("vaft", kind="defence", cost="attack + 2 forward, attack + 2 backward", attacked_with="strongest")
@dataclass(frozen=True)
class Vaft(TrainingDefence):
    """The training losses of clean images and of ones attacked in frequency, and consistency of the answers.

    Plus `weight` times the L1 distance of the cosine transforms of both answers over that of the clean one, as in the
    released code (Hanif et al., MICCAI 2023, arXiv 2307.07269).

    Attributes:
        attack: makes the perturbed images; the paper's moves quantisation tables.
        weight: weight of the consistency, 0 or more.

    Raises:
        InputError: `weight` is below 0.
    """

    attack: Attack = Vafa(steps=5)
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(self, weight=0)
        require_ready(self.attack, "vaft")

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        perturbed, truth = step.attacked(self.attack, image, target)
        answer = step.log_odds(perturbed)

        def consistent(log_odds: LogOdds, clean_truth: Tensor) -> Tensor:
            both = step.criterion(log_odds, clean_truth) + step.criterion(answer, truth)
            return both + self.weight * inconsistency(log_odds, answer)

        return replace(step, criterion=consistent).loss(image, target)


def inconsistency(log_odds: LogOdds, other: LogOdds) -> Tensor:
    """The mean over images of the L1 distance of cosine transforms, over the L1 norm of the first."""
    sides = log_odds.shape[2:]
    clean, perturbed = (dct(x, sides).flatten(1) for x in (log_odds, other))
    relative: Tensor = (clean - perturbed).abs().sum(1) / clean.abs().sum(1).clamp(min=1e-12)
    return relative.mean()
