"""Training on images that any registered attack perturbs."""

from dataclasses import dataclass

from torch import Tensor

from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.defences.training.base import Step, TrainingDefence, require_ready
from medseg_attack.errors import require
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Attack, Image


@register("adversarial", kind="defence", cost="attack + 1 forward, attack + 1 backward", attacked_with="strongest")
@dataclass(frozen=True)
class AdversarialTraining(TrainingDefence):
    """The training loss on perturbed images, alone or mixed with that on clean ones (Madry et al., arXiv 1706.06083).

    `adversarial(attack=fgsm(linf(4/255)), share=0.5)` is the mixture of Goodfellow et al., arXiv 1412.6572.

    Raises:
        InputError: `share` is not from 0 to 1.
    """

    by_parts = True

    attack: Attack = PGD(Linf(4 / 255), steps=3, step_size=2.5 / 3, keep_worst=False)
    share: float = 1.0

    def __post_init__(self) -> None:
        require(self, share="[0, 1]")
        require_ready(self.attack, "adversarial")

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        if self.share == 0:
            return step.loss(image, target)
        perturbed = step.attacked(self.attack, image, target)
        if self.share == 1:
            return step.loss(*perturbed)
        return (1 - self.share) * step.loss(image, target) + self.share * step.loss(*perturbed)
