"""The worst of several runs of an attack."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.errors import require
from medseg_attack.numerics.samples import reseeded
from medseg_attack.registry import register
from medseg_attack.types import Adversarial, AroundAttack, Attack, Image, Mask, Model


@register(
    "restarts",
    kind="attack",
    cost="n * attack forward, n * attack backward",
    reaches="all in eps",
    shown_by="restarts(pgd(steps=8, keep_worst=False))",
)
@dataclass(frozen=True)
class Restarts(AroundAttack):
    """The worst of several runs of an attack with other random numbers, image by image.

    Attributes:
        n: number of runs, 1 or more.

    Raises:
        InputError: `n` is below 1.
    """

    attack: Attack = PGD()
    n: int = 3

    def __post_init__(self) -> None:
        require(self, n=1)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        runs = (
            self.attack(model, image, target, reseeded(seeds, "restart", run) if run else seeds)
            for run in range(self.n)
        )
        return reduce(or_, runs)
