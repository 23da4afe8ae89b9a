"""The attack that knows of a second set of norms."""

from collections.abc import Sequence
from dataclasses import dataclass

from medseg_attack.attacks.blackbox.transfer import rescored
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.models.networks.two_norms import adversarial_norms
from medseg_attack.registry import register
from medseg_attack.types import Adversarial, AroundAttack, Attack, Image, Mask, Model


@register(
    "both_norms",
    kind="attack",
    cost="2 * attack + 1 forward, 2 * attack backward",
    paper="on models of Han et al., Nature Communications 2021",
    reaches="all in eps",
    shown_by="both_norms(pgd(steps=8, keep_worst=False))",
)
@dataclass(frozen=True)
class BothNorms(AroundAttack):
    """An attack through each of a model's two norms, of which the worse for the one that answers counts.

    Models that were trained with the defence dual_norm have two; on any other it does the same twice.
    """

    attack: Attack = PGD()

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        own = self.attack(model, image, target, seeds)
        with adversarial_norms():
            other = self.attack(model, image, target, seeds)
        return own | rescored(model, self.ball, other, image, target)
