"""Suites to report robustness with: SEA, and the strongest of all."""

from medseg_attack.attacks.blackbox.square import Square
from medseg_attack.attacks.composed.best_of import BestOf
from medseg_attack.attacks.gradient.apgd import APGD
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce, js, soft_dice
from medseg_attack.threat.objectives.weighted import balanced_bce, cosine_bce, masked_bce, masked_margin
from medseg_attack.types import Ball, Objective

RADII_OF_SEA = (2.0, 1.5, 1.0)


@register("sea", kind="attack", reaches="all in eps", shown_by="sea(steps=20)")
def sea(ball: Ball = Linf(), steps: int = 300) -> BestOf:
    """The worst of four APGD runs from wider balls, one per objective (SEA; Croce et al., arXiv 2306.12941).

    The objectives are masked_bce, balanced_bce, js and masked_margin, for an exclusive task in their softmax forms:
    masked, balanced and Jensen-Shannon as in the paper, spherical as in its code. It keeps the worst by Dice, where
    the paper keeps it by accuracy.
    """
    objectives: tuple[Objective, ...] = (masked_bce, balanced_bce, js, masked_margin)
    return BestOf(tuple(APGD(ball, objective, steps, radii=RADII_OF_SEA) for objective in objectives))


@register("strongest", kind="attack", reaches="all in eps", shown_by="strongest(steps=20, queries=5)")
def strongest(ball: Ball = Linf(), steps: int = 100, queries: int = 500) -> BestOf:
    """The worst of sea, CosPGD, APGD on soft Dice, PGD with restarts, and square: report robustness with this.

    Every member keeps its worst iterate. The steps of PGD and CosPGD add up to 5 balls, each at most a quarter of it.
    `queries` are those of square.
    """
    step_size = min(5 / steps, 0.25)
    return BestOf(
        (
            *sea(ball, steps).attacks,
            PGD(ball, cosine_bce, steps, step_size),
            APGD(ball, soft_dice, steps, radii=RADII_OF_SEA),
            PGD(ball, bce, steps, step_size, restarts=2),
            Square(ball, soft_dice, queries),
        )
    )
