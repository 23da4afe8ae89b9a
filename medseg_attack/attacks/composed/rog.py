"""ROG's suite of attacks on volumes."""

from medseg_attack.attacks.blackbox.square import Square
from medseg_attack.attacks.composed.best_of import BestOf
from medseg_attack.attacks.gradient.apgd import APGD
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce, margin
from medseg_attack.types import Ball

RESTARTS = 5  # of each attack that climbs


@register(
    "rog",
    kind="attack",
    cost="up to 15 * steps + 22 + queries + (unit == 'volume') * 4 forward, 15 * steps backward",
    reaches="all in eps",
    shown_by="rog(steps=20)",
)
def rog(ball: Ball = Linf(), steps: int = 5, queries: int = 5, unit: str = "slice") -> BestOf:
    """The worst of two APGD, PGD and the square attack (ROG's AutoAttack; Daza et al., MICCAI 2021, arXiv 2107.04263).

    APGD climbs bce and the margin, which stands for DLR: that needs three classes that exclude each other. Each climb
    has 5 restarts, PGD steps of a third of the ball. FAB, a search for the least change, is left out. The released
    suite clips z-scores to [0, 1], attacks one patch of a volume, stops at the first success and lowers its threshold
    from attack to attack; here the whole image is attacked and the worst is kept.

    Args:
        steps: of each climb, 1 or more; 5 as released.
        queries: of the square attack, 1 or more; as many as steps in the released command line.
        unit: slice or volume: what has one Dice.
    """
    climbs = (APGD(ball, objective, steps, RESTARTS, unit=unit) for objective in (bce, margin))
    return BestOf((*climbs, PGD(ball, bce, steps, 1 / 3, restarts=RESTARTS), Square(ball, queries=queries)), unit)
