"""I-GSM: steps along the signs until the case succeeds."""

from dataclasses import dataclass

from medseg_attack.attacks.minimal.search import LeastChange, Moved, Search, walk
from medseg_attack.errors import require
from medseg_attack.numerics.samples import gradient_of
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.goals.base import Goal
from medseg_attack.threat.goals.criteria import ByMiou, Criterion
from medseg_attack.threat.goals.toward import Toward
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.types import Adversarial, Ball, Image, LogOdds, Objective


@register(
    "igsm",
    kind="attack",
    cost="up to steps + 2 forward, steps backward",
    paper="Shukla et al., Multimedia Tools and Applications 2023",
    reaches="within 1.02 of the least",
    shown_by="igsm(linf(0.5), success=by_pixels, steps=60)",
)
@dataclass(frozen=True)
class Igsm(LeastChange):
    """Steps along the signs of the gradient until the case succeeds (I-GSM: MedIS with one loss; Shukla et al. 2023).

    Updates are counted, so that the change is step_size times their number; the published step count is one more.

    Attributes:
        step_size: change of every pixel in one step, absolute, > 0.

    Raises:
        InputError: `step_size` is not above 0.
    """

    ball: Ball = Linf(10 / 255)
    objective: Objective = bce
    goal: Goal | None = None
    success: Criterion = ByMiou()
    steps: int = 10
    step_size: float = 1 / 255

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, step_size="(0, inf)")

    def search(self, search: Search) -> Adversarial:
        goal = search.aim.goal
        climbed = for_task(self.objective if goal is None else Toward(self.objective, goal), search.aim.task)

        def move(x: Image, log_odds: LogOdds) -> Moved:
            return x + self.step_size * gradient_of(climbed(log_odds, search.target), x).sign(), 1

        return walk(search, self.steps, move)
