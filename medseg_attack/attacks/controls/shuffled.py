"""Another attack's change with its pixels in random places: its size without its structure."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError
from medseg_attack.registry import About, register
from medseg_attack.types import Adversarial, Attack, Ball, Image, Mask, Model


@register(
    "shuffled", kind="attack", about=About(threat="that of its attack", norm="that of its attack", reaches="its ball")
)
@dataclass(frozen=True)
class Shuffled:
    """Another attack's change with its pixels in random places: its size without its structure.

    The control of Bortsova et al., arXiv 2006.06356: what transfers no better than this does not transfer.
    """

    attack: Attack = PGD()

    @property
    def ball(self) -> Ball:
        return self.attack.ball

    @property
    def attacks(self) -> tuple[Attack, ...]:
        return (self.attack,)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        found = self.attack(model, image, target, seeds)
        if found.flow is not None:
            raise InputError("expected an attack that adds to the image for shuffled, got one that moves it; drop it")
        image = image.expand_as(found.image)
        change = (found.image - image).flatten(2)
        places = [torch.randperm(change.shape[2], generator=torch.Generator().manual_seed(s ^ 1)) for s in seeds]
        elsewhere = torch.stack([one[:, at.to(one.device)] for one, at in zip(change, places, strict=True)])
        x = self.ball.project(image + elsewhere.view_as(image), image)
        return judge(model, self.ball, x, image, target)
