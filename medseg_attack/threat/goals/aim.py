"""The aim of an attack with a goal or a stopping rule: constraints to climb, and whether they are met."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from medseg_attack.errors import InputError, plural
from medseg_attack.registry import build, names
from medseg_attack.registry.abilities import Aimed
from medseg_attack.registry.foreign import is_foreign, lent, part_name, words_of
from medseg_attack.registry.parts import inner_parts, walk
from medseg_attack.registry.table import kind_of
from medseg_attack.threat.goals.base import Goal
from medseg_attack.threat.goals.criteria import Criterion
from medseg_attack.threat.goals.toward import Toward
from medseg_attack.types import LogOdds, Mask, Objective, PerSample, Setting, Task

GOAL_COLUMNS = ("n_goal", "hit_goal", "hit_goal_of_clean")
TAKEN_COLUMNS = ("n_taken", "hit_taken", "hit_taken_of_clean")


@dataclass(frozen=True)
class Aim:
    """A direction, away from the truth or towards a goal, and the criterion that ends it.

    Attributes:
        goal: mask that is wanted; None for any mask but the truth.
        success: criterion that says how far an attack came.
        counts_taken: whether `measured` counts the pixels that the goal takes away, which the success of a backdoor is
            stated by.
    """

    goal: Goal | None
    success: Criterion
    task: Task
    counts_taken: bool = False

    @classmethod
    def of(cls, goal: Goal | None, success: Criterion, task: Task) -> "Aim":
        """The aim among the classes of `task`; a goal that is bound already stays as it is."""
        return cls(goal if goal is None or goal.setting else goal.bind(Setting(task)), success, task)

    def excess(self, log_odds: LogOdds, target: Mask) -> Float[Tensor, "b n *s"]:
        """The distance of each entry from the decision's boundary, in log-odds: > 0 is adversarial.

        Entries are the classes of a pixel where these may overlap, else pixels (n = 1): the log-odds themselves, or the
        largest other log-probability less that of the true class, which is the difference of the logits.
        """
        excess = _over_exclusive if self.task.exclusive else _over
        if self.goal is None:
            return excess(log_odds, target)
        return Toward(cast(Objective, excess), self.goal)(log_odds, target)

    def progress(self, pred: Mask, target: Mask) -> PerSample:
        """The progress of each sample, in [0, 1]; 1 is success."""
        own, other = (lent(self.success, mask) for mask in (pred, target if self.goal is None else self.goal(target)))
        rule = self.success.away if self.goal is None else self.success.near
        progress = rule(own, other, self.task)
        if is_foreign(self.success):
            _check_progress(progress, len(pred), self.success)
        return progress

    def reached(self, pred: Mask, target: Mask) -> Bool[Tensor, "b"]:
        """Whether each sample met the criterion."""
        return self.progress(pred, target) >= 1

    def measured(self, clean: Mask, pred: Mask, target: Mask) -> list[list[dict[str, float]]]:
        """Columns of each case and class that tables report, from the predictions before and under attack.

        `success` by the attack's own criterion and by every registered one, `success_on_truth` by its own as if it had
        no goal, and pixels: of the goal, and of both predictions in it.
        """
        successes = {"success": self.reached(pred, target), "success_of_clean": self.reached(clean, target)}
        successes["success_on_truth"] = replace(self, goal=None).reached(pred, target)
        for name in names("criterion"):
            successes[f"success_{name}"] = replace(self, success=build(name, "criterion")).reached(pred, target)
        reached = [
            dict(zip(successes, map(float, facts), strict=True))
            for facts in torch.stack(list(successes.values()), 1).tolist()
        ]
        goal = target if self.goal is None else self.goal(target)
        if self.goal is not None and is_foreign(self.goal) and not torch.equal(goal, self.goal(target)):
            raise InputError(
                f"expected {part_name(self.goal)} to want the same mask each time, got two for one truth; let it draw "
                "numbers from a generator with a seed of its own"
            )
        pixels = [(mask & goal).flatten(2).sum(2) for mask in (goal, pred, clean)]
        in_goal = torch.stack(pixels, 2).tolist() if self.goal is not None else [[()] * target.shape[1]] * len(target)
        nothing: list[list[list[int]]] = [[[]] * target.shape[1]] * len(target)
        taken = self._taken(clean, pred, target, goal) if self.counts_taken else nothing
        return [
            [
                case
                | dict(zip(GOAL_COLUMNS, map(float, counted[k]), strict=False))
                | dict(zip(TAKEN_COLUMNS, map(float, lost[k]), strict=False))
                for k in self.task.scored
            ]
            for case, counted, lost in zip(reached, in_goal, taken, strict=True)
        ]

    def _taken(self, clean: Mask, pred: Mask, target: Mask, goal: Mask) -> list[list[list[int]]]:
        """Pixels that the goal takes from each class, and those of them that both predictions give up as it wants."""
        taken = target & ~goal
        lost = [
            taken & ((mask == goal).all(1, keepdim=True) if self.task.exclusive else ~mask) for mask in (pred, clean)
        ]
        counted: list[list[list[int]]] = torch.stack([m.flatten(2).sum(2) for m in (taken, *lost)], 2).tolist()
        return counted


def _check_progress(progress: Any, n: int, success: Criterion) -> None:
    """Refuses what is no progress of each of `n` samples: no attack could be judged by it.

    Raises:
        InputError: it is not.
    """
    if not isinstance(progress, Tensor) or tuple(progress.shape) != (n,) or progress.is_complex():
        got = words_of(progress)
    elif not bool(((progress >= 0) & (progress <= 1)).all()):
        got = f"{progress.tolist()}"
    else:
        return
    raise InputError(
        f"expected a number from 0 to 1 for each of {plural(n, 'sample')} from {part_name(success)}, got {got}; let it "
        "return the progress of each sample, of which 1 is success"
    )


def _over(log_odds: LogOdds, mask: Mask, progress: float = 1.0) -> Float[Tensor, "b n *s"]:
    return torch.where(mask, -log_odds, log_odds)


def _over_exclusive(log_odds: LogOdds, mask: Mask, progress: float = 1.0) -> Float[Tensor, "b 1 *s"]:
    log_p = functional.logsigmoid(log_odds)
    true_log_p = torch.where(mask, log_p, 0.0).sum(1, keepdim=True)
    return log_p.masked_fill(mask, -torch.inf).amax(1, keepdim=True) - true_log_p


def find_aim(attack: Any, task: Task) -> Aim | None:
    """The aim of an attack, at whatever depth its goal or its stopping rule sits; None if there is none, or several."""
    aims = list(dict.fromkeys((part.goal, part.success) for part in _aimed_parts(attack)))
    if len(aims) != 1:
        return None
    has_trigger = any(kind_of(part) == "poison" for part in walk(attack))
    return replace(Aim.of(*aims[0], task), counts_taken=has_trigger)


def _aimed_parts(thing: Any) -> Iterator[Aimed]:
    """The outermost parts that have a goal or a stopping rule."""
    if isinstance(thing, Aimed):
        yield thing
        return
    for part in inner_parts(thing).values():
        yield from _aimed_parts(part)
