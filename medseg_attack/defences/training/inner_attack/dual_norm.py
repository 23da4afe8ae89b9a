"""Training with a batch norm for clean images and one for perturbed ones."""

from dataclasses import dataclass

from torch import Tensor

from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.defences.training.base import Step, TrainingDefence, require_ready
from medseg_attack.errors import InputError
from medseg_attack.models.networks.two_norms import adversarial_norms, split_norms, two_norms
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import build, register, spec
from medseg_attack.registry.table import Bound
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Attack, Image


@register(
    "dual_norm",
    kind="defence",
    cost="attack + 2 forward, attack + 2 backward",
    paper="Han et al., Nature Communications 2021",
    attacked_with="both_norms(attack=strongest)",
)
@dataclass(frozen=True)
class DualNorm(TrainingDefence):
    """The training losses of clean and of perturbed images, each through batch norms of its own.

    The model that is kept answers through the norms for clean images: nobody tells it which images are perturbed. The
    published evaluation does.

    Attributes:
        attack: makes the perturbed images, through their own norms.

    Raises:
        InputError: the network has no batch norms.
    """

    attack: Attack = PGD(Linf(4 / 255), steps=3, step_size=2.5 / 3, keep_worst=False)

    def __post_init__(self) -> None:
        require_ready(self.attack, "dual_norm")

    def prepare(self, model: SegModel) -> None:
        if not split_norms(model):
            raise InputError("expected a network with batch norms for dual_norm, got one without; take unet_small")

    def architecture(self, model: str) -> str:
        return spec(Bound(two_norms, (("model", build(model, "model")),)))

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        with adversarial_norms():
            adversarial = step.loss(*step.attacked(self.attack, image, target))
        return step.loss(image, target) + adversarial
