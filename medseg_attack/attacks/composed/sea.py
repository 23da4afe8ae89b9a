"""SEA, the suite of APGD on several objectives."""

from medseg_attack.attacks.composed.best_of import BestOf
from medseg_attack.attacks.gradient.apgd import APGD
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import js
from medseg_attack.threat.objectives.weighted import balanced_bce, masked_bce, masked_margin
from medseg_attack.types import Ball, Objective

RADII_OF_SEA = (2.0, 1.5, 1.0)


@register(
    "sea",
    kind="attack",
    cost="up to 4 * (steps + 4 + (unit == 'volume')) forward, 4 * steps backward",
    reaches="all in eps",
    shown_by="sea(steps=20)",
)
def sea(ball: Ball = Linf(), steps: int = 300, unit: str = "slice") -> BestOf:
    """The worst of four APGD runs from wider balls, one per objective (SEA; Croce et al., arXiv 2306.12941).

    The objectives are masked_bce, balanced_bce, js and masked_margin, for an exclusive task in their softmax forms:
    masked, balanced and Jensen-Shannon as in the paper, spherical as in its code. It keeps the worst by Dice, where
    the paper keeps it by accuracy. With `unit='volume'` the worst of the four lowers Dice of the whole volume.
    """
    objectives: tuple[Objective, ...] = (masked_bce, balanced_bce, js, masked_margin)
    return BestOf(tuple(APGD(ball, objective, steps, radii=RADII_OF_SEA, unit=unit) for objective in objectives), unit)
