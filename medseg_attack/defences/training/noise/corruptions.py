"""Training on images that scanners and bodies change at random."""

from dataclasses import dataclass

from torch import Tensor

from medseg_attack.attacks.physical.affine import Affine
from medseg_attack.attacks.physical.bias_field import BiasField
from medseg_attack.attacks.physical.exposure import Exposure
from medseg_attack.attacks.physical.ghosting import Ghosting
from medseg_attack.attacks.physical.motion import Motion
from medseg_attack.attacks.physical.scanner_noise import Rician, Speckle
from medseg_attack.defences.training.base import Step, TrainingDefence, require_ready
from medseg_attack.errors import InputError, require
from medseg_attack.registry import register
from medseg_attack.types import Attack, Image

RANDOM = (
    Affine(steps=0),
    BiasField(steps=0),
    Exposure(steps=0),
    Ghosting(steps=0),
    Motion(steps=0),
    Rician(steps=0),
    Speckle(steps=0),
)


@register("corruptions", kind="defence", cost="3 forward, 1 backward", attacked_with="strongest")
@dataclass(frozen=True)
class Corruptions(TrainingDefence):
    """The training loss on images after a random physical change, another for each batch (Hendrycks, arXiv 1903.12261).

    It is no defence against the worst case. With steps, the same attacks are adversarial augmentations: write
    `adversarial(attack=bias_field)`.

    Attributes:
        attacks: those of which each batch draws one; without steps an attack is a random draw.
        share: weight of the changed images in the loss, in [0, 1]; the unchanged ones have the rest.

    Raises:
        InputError: `share` is not from 0 to 1, or there are no attacks.
    """

    attacks: tuple[Attack, ...] = RANDOM
    share: float = 1.0

    def __post_init__(self) -> None:
        require(self, share="[0, 1]")
        require_ready(self.attacks, "corruptions")
        if not self.attacks:
            raise InputError("expected attacks for corruptions, got none; write such as attacks=(rician(steps=0),)")

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        if self.share == 0:
            return step.loss(image, target)
        changed = step.loss(*step.attacked(self.attacks[step.seeds[0] % len(self.attacks)], image, target))
        return changed if self.share == 1 else (1 - self.share) * step.loss(image, target) + self.share * changed
