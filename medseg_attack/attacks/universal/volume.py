"""One perturbation that makes an organ larger, or smaller, in every image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from medseg_attack.attacks.learning import Learning
from medseg_attack.attacks.universal.uap import UAP, Universal
from medseg_attack.errors import InputError, nearest, require
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.threat.organs import organ_classes
from medseg_attack.types import Ball, Batch, Bindable, LogOdds, Mask, Model, PerSample

AIMS = ("larger", "smaller")


@dataclass(frozen=True)
class SoftVolume:
    """The sum of the probabilities of some classes, in pixels, with a sign; the truth does not matter.

    Attributes:
        classes: indices of the classes.
        sign: 1 to make it larger, -1 to make it smaller.
    """

    classes: tuple[int, ...]
    sign: float

    def __call__(self, log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
        return self.sign * log_odds[:, list(self.classes)].sigmoid().flatten(1).sum(1)


@register(
    "universal_volume",
    kind="attack",
    cost="1 forward, 0 backward",
    threat="white box, on other patients",
    paper="Li et al. 2020 (one perturbation for a regressed number)",
    reaches="its ball",
    shown_by="universal_volume(epochs=2)",
)
@dataclass(frozen=True)
class UniversalVolume(Learning, Bindable):
    """One perturbation that moves the volume of an organ the same way in all images, learned on the training patients.

    It climbs the signed mean of the change over images, as Li et al. 2020 do for a regressed number: changes that
    cancel are of no use to one who wants every patient larger. A signed step follows the gradient of each batch. The
    change of a mean is the mean of the changes, so that no clean volume is needed.

    Attributes:
        organ: name of a class of the task; "": all organs together.
        aim: "larger" or "smaller".
        epochs: passes over the images that it is fitted on, 1 or more.

    Raises:
        InputError: there is no such aim, or the task has no organ of that name.
    """

    ball: Ball = Linf()
    organ: str = ""
    aim: str = "larger"
    epochs: int = 5
    step_size: float = 0.1

    def __post_init__(self) -> None:
        require(self, epochs=1, step_size=0)
        if self.aim not in AIMS:
            raise InputError(f"expected an aim of universal_volume, got {self.aim!r}; {nearest(self.aim, AIMS)}")

    def fit(self, model: Model, batches: Sequence[Batch], seed: int) -> dict[str, Tensor]:
        """The learned perturbation as `change` (1, c, *grid); `seed` draws the order of the batches in every epoch."""
        classes = organ_classes(model.task, self.organ, "universal_volume")
        volume = SoftVolume(tuple(classes), 1.0 if self.aim == "larger" else -1.0)
        climber = UAP(self.ball, volume, self.epochs, self.step_size, setting=self.setting)
        return climber.fit(model, batches, seed)

    def with_learned(self, learned: Mapping[str, Tensor]) -> Universal:
        """The attack that adds a learned perturbation."""
        return Universal(self.ball, "resize", learned["change"], bce)
