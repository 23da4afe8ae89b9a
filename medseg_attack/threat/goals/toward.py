"""Objectives turned towards a goal: the one place with a minus sign."""

from dataclasses import dataclass

from torch import Tensor

from medseg_attack.registry import register
from medseg_attack.threat.goals.base import Goal
from medseg_attack.threat.goals.criteria import ByDice, Criterion
from medseg_attack.threat.goals.masks import Erase
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.threat.objectives.weighted import REVERSED
from medseg_attack.types import LogOdds, Mask, Objective


@register("toward", kind="objective")
@dataclass(frozen=True)
class Toward:
    """An objective turned towards a goal: minus the objective of the goal in place of the truth.

    This is the one place with a minus sign. Functions of every entry may stand in place of an objective.

    Attributes:
        objective: function of log-odds and truth that is turned.
        goal: mask that is wanted.
        success: criterion that says, in the tables, when the goal counts as reached.
    """

    objective: Objective = bce
    goal: Goal = Erase()
    success: Criterion = ByDice()

    def __call__(self, log_odds: LogOdds, target: Mask, progress: float = 1.0) -> Tensor:
        objective = REVERSED.get(self.objective, self.objective)
        return -objective(log_odds, self.goal(target), progress)
