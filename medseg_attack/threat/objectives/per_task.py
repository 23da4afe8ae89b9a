"""Forms of an objective: the one that is climbed on a task, and the one that measures whether steps pay."""

from dataclasses import replace
from typing import Any, cast

from medseg_attack.errors import InputError
from medseg_attack.registry import entry_of, find, names, spec
from medseg_attack.registry.abilities import Climbs
from medseg_attack.threat.objectives.losses import margin
from medseg_attack.types import Objective, Task


def for_task(objective: Objective, task: Task) -> Objective:
    """The form of an objective that this task is attacked with: the softmax form, if classes exclude each other.

    One that climbs another, such as `toward`, climbs the form of that.

    Raises:
        InputError: the objective compares classes that exclude each other, and these may overlap.
    """
    if isinstance(objective, Climbs):
        return cast(Objective, replace(cast(Any, objective), objective=for_task(objective.objective, task)))
    entry = entry_of(objective)
    if entry is None:
        return objective
    if task.exclusive:
        return entry.softmax or objective
    if entry.exclusive:
        per_entry = next((other.make for other in map(find, names("objective")) if other.softmax is entry.make), margin)
        raise InputError(
            f"expected an objective for classes that may overlap, as those of {task.name} do, got {spec(objective)}, "
            f"which compares a pixel's true class with the others; take {spec(per_entry)}"
        )
    return objective


def progress_of(objective: Objective) -> Objective | None:
    """The objective over all entries, of one that masks or weighs them; None of any other.

    By this an attack tells whether its steps pay (arXiv 2306.12941): a mask falls as the attack succeeds.
    """
    if not isinstance(objective, Climbs):
        entry = entry_of(objective)
        return None if entry is None else entry.unweighted
    whole = progress_of(objective.objective)
    return None if whole is None else cast(Objective, replace(cast(Any, objective), objective=whole))
