"""Training in which every case has the budget that it can stand."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from medseg_attack.attacks.climbing import climb
from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import require
from medseg_attack.metrics.harm import harm
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics.samples import widen
from medseg_attack.registry import register
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.types import Image, LogOdds, Mask, PerSample


@register("margin_aware", kind="defence", cost="steps + 7 forward, steps + 2 backward", attacked_with="strongest")
@dataclass(frozen=True)
class MarginAware(TrainingDefence):
    """Training losses of clean images and of ones attacked within a budget of their own (Ma & Liang, arXiv 2206.01736).

    A case that withstands its attack gets a larger budget; one that does not gets that at which it first failed. One
    that is wrong untouched keeps its budget, and is trained on as it is: the paper attacks right cases alone. Right is
    what reaches `least_dice`, untouched or attacked; the released code takes every untouched segmentation for right.
    The paper has l2 balls; here they are linf.

    Attributes:
        largest: largest budget, 0 or more, in [0, 1] of the window.
        growth: what a case's budget begins with and grows by, as a share of `largest`, 0 or more.
        least_dice: Dice from which on a segmentation is right, in [0, 1]; 0 attacks every case.
        steps: gradient steps of the attack, 1 or more.

    Raises:
        InputError: a field is out of range.
    """

    largest: float = 8 / 255
    growth: float = 0.1
    least_dice: float = 0.6
    share: float = 0.5
    steps: int = 5

    def __post_init__(self) -> None:
        require(self, share="[0, 1]", least_dice="[0, 1]", largest=0, growth=0, steps=1)

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        places = torch.tensor(step.places, device=image.device)
        budgets = self._budgets(step, int(places.max()) + 1, image)
        eps, mask = budgets[places], target > 0.5
        with frozen(step.model) as model:
            perturbed, was_right = self._climbed(model, image, mask, eps)
            fails = self._fails(model, perturbed, mask)
            first = self._first_failure(model, image, perturbed - image, mask)
        grown = (eps + self.growth * self.largest).clamp(max=self.largest)
        updated = torch.where(was_right, torch.where(fails, first * eps, grown), eps)
        step.state["budgets"] = budgets.index_put((places,), updated)
        perturbed = torch.where(widen(was_right, image), perturbed, image)
        return (1 - self.share) * step.loss(image, target) + self.share * step.loss(perturbed, target)

    def _budgets(self, step: Step, n: int, image: Image) -> Tensor:
        """The budget of each training case that was met so far, and of at least `n` cases."""
        known = step.state.get("budgets", image.new_zeros(0)).to(image)
        return torch.cat((known, known.new_full((max(n - len(known), 0),), self.growth * self.largest)))

    def _climbed(self, model: SegModel, image: Image, mask: Mask, eps: PerSample) -> tuple[Image, Bool[Tensor, "b"]]:
        """PGD from the image itself, within `eps` of each, and whether each was right there."""
        objective, wide = for_task(bce, model.task), widen(eps, image)
        x, was_right = image, torch.ones_like(eps, dtype=torch.bool)
        for step in range(self.steps):
            log_odds, _, grad = climb(model, objective, x, mask, 1.0)
            was_right = was_right if step else ~self._is_wrong(model, log_odds, mask)
            x = x + 2.5 / self.steps * wide * grad.sign()
            x = torch.minimum(torch.maximum(x, image - wide), image + wide).clamp(0, 1)
        return x, was_right

    @torch.no_grad()
    def _fails(self, model: SegModel, x: Image, mask: Mask) -> Bool[Tensor, "b"]:
        return self._is_wrong(model, model(x), mask)

    def _is_wrong(self, model: SegModel, log_odds: LogOdds, mask: Mask) -> Bool[Tensor, "b"]:
        classes = model.task.scored_channels
        return harm(model.decide(log_odds)[:, classes], mask[:, classes]) > 1 - self.least_dice

    def _first_failure(self, model: SegModel, image: Image, change: Image, mask: Mask) -> PerSample:
        """The share of the change at which a case first fails, by 4 bisections."""
        low, high = torch.zeros_like(image[:, 0].flatten(1)[:, 0]), torch.ones_like(image[:, 0].flatten(1)[:, 0])
        for _ in range(4):
            middle = (low + high) / 2
            fails = self._fails(model, image + widen(middle, image) * change, mask)
            low, high = torch.where(fails, low, middle), torch.where(fails, middle, high)
        return high
