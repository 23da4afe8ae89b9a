"""Attacks that learn from some cases before they attack others."""

from collections.abc import Sequence

from medseg_attack.errors import InputError
from medseg_attack.registry.specs import spec_of
from medseg_attack.types import Adversarial, Image, Mask, Model


class Learning:
    """An attack that has learned nothing yet: what attacks is what its `with_learned` returns."""

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        raise InputError(
            f"{spec_of(self).name} has to be fitted first, got one that learned nothing; run it through 'medattack "
            "attack'"
        )
