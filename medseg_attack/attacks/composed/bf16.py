"""An attack that asks its model in bfloat16, for speed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.registry import register
from medseg_attack.threat.binding import bind
from medseg_attack.types import Adversarial, AroundAttack, AroundModel, Attack, Image, LogOdds, Mask, Model, Setting


@dataclass(frozen=True, eq=False)
class Bf16Model(AroundModel):
    """A model whose products of matrices and convolutions are in bfloat16 where the image is float32; its log-odds are
    of the image's type.
    """

    model: Model

    def __call__(self, image: Image) -> LogOdds:
        if image.dtype != torch.float32:
            return self.model(image)
        with torch.autocast(image.device.type, dtype=torch.bfloat16):
            log_odds = self.model(image)
        return log_odds.to(image)

    def bind(self, setting: Setting) -> "Bf16Model":
        """The model bound to a setting."""
        return Bf16Model(bind(self.model, setting))


@register(
    "bf16", kind="attack", cost="attack forward, attack backward", reaches="all in eps", shown_by="bf16(pgd(steps=8))"
)
@dataclass(frozen=True)
class Bf16(AroundAttack):
    """An attack whose passes are in bfloat16 (torch's autocast): faster where the processor or the GPU has it.

    Only what the attack sees of the model is rounded: its balls and its objective are float32, and its images are
    scored by the model as it is, as those of every attack. Beside the attack itself in one study the table says what
    the rounding costs in Dice. In double precision it is the attack itself.
    """

    attack: Attack = PGD()

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        if isinstance(model, CountedModel):  # the untouched image needs no second pass: its score is in float32
            rounded: Model = CountedModel(Bf16Model(model.model), model, model.known)
        else:
            rounded = Bf16Model(model)
        return self.attack(rounded, image, target, seeds)
