"""Per case the least change that any of several attacks succeeds with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Any

import torch

from medseg_attack.attacks.judging import judge
from medseg_attack.attacks.minimal.igsm import Igsm
from medseg_attack.errors import InputError
from medseg_attack.registry import About, register, spec
from medseg_attack.registry.abilities import Aimed
from medseg_attack.threat.objectives.losses import bce, bce_dice
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model


@register(
    "least_of",
    kind="attack",
    about=About(
        reaches="within 1.01 of the least", shown_by="least_of((dag(linf(0.5), steps=300), deepfool(linf(0.5))))"
    ),
)
@dataclass(frozen=True)
class LeastOf:
    """Per case the least change that any of several attacks succeeds with (parallel fusion as in MedIS).

    It succeeds wherever one of them does; it costs what they cost together. Between equal changes the first decides.

    Attributes:
        attacks: that look for the least change, with the same norm and aim.
    """

    attacks: tuple[Any, ...] = (Igsm(objective=bce), Igsm(objective=bce_dice))

    def __post_init__(self) -> None:
        if not self.attacks or not all(isinstance(attack, Aimed) for attack in self.attacks):
            got = ", ".join(map(spec, self.attacks)) or "none"
            raise InputError(
                f"expected attacks with a criterion of success, such as igsm or dag, got {got}; change them"
            )
        norms = {spec(attack.ball) for attack in self.attacks}
        if len(norms) > 1:
            raise InputError(f"expected attacks of one ball, got {', '.join(sorted(norms))}; their sizes must compare")
        if len({(attack.goal, attack.success) for attack in self.attacks}) > 1:
            raise InputError("expected attacks of one goal and criterion, got several; their successes must compare")

    @property
    def ball(self) -> Ball:
        ball: Ball = self.attacks[0].ball
        return ball

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        found = [attack(model, image, target, seeds) for attack in self.attacks]
        # success in the place of harm: "the more harmful, then the smaller" is then the least that succeeds
        best = reduce(or_, [replace(one, harm=one.success.to(one.harm)) for one in found])
        passes = None if best.passes is None else best.passes + torch.tensor([1, 0], device=image.device)
        again = judge(model, self.ball, best.image, image, target)
        return replace(again, success=best.success, passes=passes)
