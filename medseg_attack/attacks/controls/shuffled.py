"""The control that moves the pixels of an attack's change to random places."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.types import Adversarial, AroundAttack, Attack, Image, Mask, Model


@register(
    "shuffled",
    kind="attack",
    cost="attack + 1 forward, attack backward",
    threat="that of its attack",
    norm="that of its attack",
    reaches="its ball",
)
@dataclass(frozen=True)
class Shuffled(AroundAttack):
    """Another attack's change with its pixels in random places: its size without its structure.

    It is the control of Bortsova et al., arXiv 2006.06356: an attack that transfers no better than this does not
    transfer. It refuses an attack that moves the image (InputError).

    Raises:
        InputError: the attack moves the image.
    """

    attack: Attack = PGD()

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        result = self.attack(model, image, target, seeds)
        if result.flow is not None:
            raise InputError("expected an attack that adds to the image for shuffled, got one that moves it; drop it")
        image = image.expand_as(result.image)
        change = (result.image - image).flatten(2)
        orders = [torch.randperm(change.shape[2], generator=torch.Generator().manual_seed(s ^ 1)) for s in seeds]
        shuffled = torch.stack(
            [sample[:, order.to(image.device)] for sample, order in zip(change, orders, strict=True)]
        )
        x = self.ball.project(image + shuffled.view_as(image), image)
        return judge(model, self.ball, x, image, target)
