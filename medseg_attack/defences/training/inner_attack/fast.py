"""Training on images after one gradient step from a random start."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from medseg_attack.attacks.gradient.pgd import PGD, fgsm
from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import require
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Attack, Ball, Image

GAP = 0.15  # of Dice between FGSM and PGD, beyond which a growing gap is catastrophic overfitting


@register("fast", kind="defence", cost="3 forward, 2 backward", attacked_with="strongest")
@dataclass(frozen=True)
class Fast(TrainingDefence):
    """The training loss on images after one step from a random start (Wong et al., arXiv 2001.03994).

    Such a training can overfit to single steps at once: FGSM fails, and PGD succeeds. The validation patients are
    attacked with both after each epoch. The training stops where the gap exceeds 0.15 of Dice and grows.

    Attributes:
        step_size: length of the step, as a share of the ball, 0 or more.

    Raises:
        InputError: `step_size` is below 0.
    """

    ball: Ball = Linf(4 / 255)
    step_size: float = 1.25

    def __post_init__(self) -> None:
        require(self, step_size=0)

    @property
    def monitor(self) -> Attack:  # type: ignore[override]
        return fgsm(self.ball)

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        attack = PGD(self.ball, steps=1, step_size=self.step_size, keep_worst=False)
        return step.loss(*step.attacked(attack, image, target))

    def alarm(self, robust: Sequence[float], monitored: Sequence[float]) -> str:
        gaps = [single - several for single, several in zip(monitored, robust, strict=True)]
        if len(gaps) < 2 or gaps[-1] <= GAP or gaps[-1] <= gaps[-2]:
            return ""
        return (
            f"catastrophic overfitting: validation Dice {monitored[-1]:.3f} under FGSM, {robust[-1]:.3f} under PGD, a "
            f"gap of {gaps[-1]:.3f} after {gaps[-2]:.3f}"
        )
