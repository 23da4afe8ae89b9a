"""An attack on one organ alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.registry import register
from medseg_attack.threat.organs import organ_classes
from medseg_attack.types import Adversarial, AroundAttack, Attack, Image, LogOdds, Mask, Model, Task


@register(
    "for_organ",
    kind="attack",
    cost="attack forward, attack backward",
    reaches="all in eps",
    shown_by="for_organ(organ='organ')",
)
@dataclass(frozen=True)
class ForOrgan(AroundAttack):
    """An attack on one organ: its objective and the Dice that it keeps its worst by are of that organ alone.

    An attack returns one image per case, the worst on the mean of the organs. The worst image for one organ is another
    image, and another run. Read only that organ's column: the others were not attacked.

    Attributes:
        organ: name of a class of the task; "" attacks all organs at once.

    Raises:
        InputError: the task has no organ of that name.
    """

    attack: Attack = PGD()
    organ: str = ""

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        if not self.organ:
            return self.attack(model, image, target, seeds)
        (k,) = organ_classes(model.task, self.organ, "for_organ")
        return self.attack(_OneOrgan(model, k), image, target[:, k : k + 1], seeds)


@dataclass(frozen=True, eq=False)
class _OneOrgan:
    """A model reduced to one class; its log-odds are positive where the model decides for the class."""

    model: Model
    k: int

    @property
    def task(self) -> Task:
        return Task(self.model.task.name, (self.model.task.classes[self.k],), channels=self.model.task.channels)

    def __call__(self, image: Image) -> LogOdds:
        """The class's log-odds; of an exclusive task, its log-probability less that of the best other class."""
        log_odds = self.model(image)
        own = log_odds[:, self.k : self.k + 1]
        if not self.model.task.exclusive:
            return own
        others = torch.cat((log_odds[:, : self.k], log_odds[:, self.k + 1 :]), 1).amax(1, keepdim=True)
        log_p = torch.nn.functional.logsigmoid
        return log_p(own) - log_p(others)

    def decide(self, log_odds: LogOdds) -> Mask:
        return log_odds >= 0
