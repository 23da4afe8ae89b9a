"""Training with the scans of patients whose masks are left aside."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.defences.training.base import Step, TrainingDefence, require_ready
from medseg_attack.errors import require
from medseg_attack.models.segmodel import frozen
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Attack, Image


@register("ssat", kind="defence", cost="attack + 3 forward, attack + 2 backward", attacked_with="strongest")
@dataclass(frozen=True)
class SemiSupervised(TrainingDefence):
    """The training loss, and consistency on perturbed scans whose masks are unknown (Li et al., arXiv 2006.13555).

    A scan's mask is what the model says of it, where it is sure. The attack moves away from that, and the loss holds
    the answer on the perturbed scan to it.

    Attributes:
        unlabelled: k/N: the k-th of N parts of the patients, counted from 0, of which no mask is used; take another
            part than that of `--patients`.
        weight: weight of the consistency, which it reaches after a fifth of the training.
        confident: least probability of a mask's pixel, in [0.5, 1]; others are left out.

    Raises:
        InputError: a field is out of range.
    """

    unlabelled: str = "0/1"
    attack: Attack = PGD(Linf(4 / 255), steps=1, step_size=1.25, keep_worst=False)
    weight: float = 3.0
    confident: float = 0.9

    def __post_init__(self) -> None:
        require(self, weight=0, confident="[0.5, 1]")
        require_ready(self.attack, "ssat")

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        labelled = step.loss(image, target)
        if self.weight == 0:
            return labelled
        assert step.unlabelled is not None  # the loop has it, as this defence names patients
        scans = step.unlabelled()
        with frozen(step.model) as model, torch.no_grad():
            log_odds = model(scans)
        mask = step.model.decide(log_odds).float()
        sure = torch.sigmoid(log_odds.abs() if not model.task.exclusive else log_odds.amax(1, keepdim=True))
        perturbed, mask = step.attacked(self.attack, scans, mask)
        margin = torch.where(mask > 0.5, 1.0, -1.0) * step.log_odds(perturbed)
        entries = functional.softplus(-margin)
        if model.task.exclusive:
            entries = (entries * mask).sum(1, keepdim=True)
        kept = (sure >= self.confident).to(entries)
        consistency = (entries * kept).sum() / kept.sum().clamp(min=1)
        return labelled + self.weight * min(5 * step.progress, 1.0) * consistency
