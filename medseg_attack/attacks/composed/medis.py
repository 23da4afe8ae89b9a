"""MedIS: one attack per loss, and for each case the loss that needs the least change."""

from medseg_attack.attacks.composed.least_of import LeastOf
from medseg_attack.attacks.minimal.igsm import Igsm
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.goals.base import Goal
from medseg_attack.threat.goals.criteria import ByMiou, Criterion
from medseg_attack.threat.objectives.medis import LOSSES, RELEASED, medis_combined, medis_combined_shukla2023
from medseg_attack.types import Ball, Objective


@register(
    "medis",
    kind="attack",
    cost="up to 6 * (steps + 2) + 1 forward, 6 * steps backward",
    paper="Shukla et al., Multimedia Tools and Applications 2023",
    reaches="within 1.02 of the least",
    shown_by="medis(linf(0.5), success=by_pixels, steps=60)",
)
def medis(
    ball: Ball = Linf(10 / 255),
    goal: Goal | None = None,
    success: Criterion = ByMiou(),
    steps: int = 10,
    released: bool = False,
) -> LeastOf:
    """MedIS: one attack for each of five losses and their sum; for each case the least change (Shukla et al. 2023).

    Args:
        released: True takes the losses as the released notebooks compute them, False as the paper defines them.
    """
    last = medis_combined_shukla2023 if released else medis_combined
    losses: list[Objective] = [*(RELEASED if released else LOSSES), last]
    return LeastOf(tuple(Igsm(ball, loss, goal, success, steps) for loss in losses))
