"""The least change with which any of several attacks succeeds, case by case."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Any

import torch

from medseg_attack.attacks.judging import judge
from medseg_attack.attacks.minimal.igsm import Igsm
from medseg_attack.errors import InputError
from medseg_attack.registry import register, spec
from medseg_attack.registry.abilities import Aimed
from medseg_attack.threat.objectives.losses import bce, bce_dice
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model


@register(
    "least_of",
    kind="attack",
    cost="sum(attacks) + 1 forward, sum(attacks) backward",
    reaches="within 1.01 of the least",
    shown_by="least_of((dag(linf(0.5), steps=300), deepfool(linf(0.5))))",
)
@dataclass(frozen=True)
class LeastOf:
    """The least change with which any of several attacks succeeds, case by case (MedIS's parallel fusion).

    It succeeds wherever one of them does, and it costs what they cost together. Between equal changes the first
    attack's is kept.

    Attributes:
        attacks: attacks of the least change, with the same ball, goal and criterion of success.

    Raises:
        InputError: an attack has no criterion of success, or they differ in ball, goal or criterion.
    """

    attacks: tuple[Any, ...] = (Igsm(objective=bce), Igsm(objective=bce_dice))

    def __post_init__(self) -> None:
        if not self.attacks or not all(isinstance(attack, Aimed) for attack in self.attacks):
            got = ", ".join(map(spec, self.attacks)) or "none"
            raise InputError(
                f"expected attacks with a criterion of success, such as igsm or dag, got {got}; write such attacks"
            )
        norms = {spec(attack.ball) for attack in self.attacks}
        if len(norms) > 1:
            raise InputError(
                f"expected attacks of one ball, got {', '.join(sorted(norms))}; write the same ball in all of them"
            )
        if len({(attack.goal, attack.success) for attack in self.attacks}) > 1:
            raise InputError("expected attacks of one goal and criterion, got several; write the same ones in all")

    @property
    def ball(self) -> Ball:
        ball: Ball = self.attacks[0].ball
        return ball

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        results = [attack(model, image, target, seeds) for attack in self.attacks]
        # success in the place of harm: "the more harmful, then the smaller" is then the least that succeeds
        best = reduce(or_, [replace(result, harm=result.success.to(result.harm)) for result in results])
        passes = None if best.passes is None else best.passes + torch.tensor([1, 0], device=image.device)
        judged = judge(model, self.ball, best.image, image, target)
        return replace(judged, success=best.success, passes=passes)
