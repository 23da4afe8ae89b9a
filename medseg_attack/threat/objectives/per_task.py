"""Which form of an objective an attack climbs on a task, and by which it tells whether its steps pay."""

from dataclasses import replace
from typing import Any, cast

from medseg_attack.errors import InputError
from medseg_attack.registry import Bound, spec
from medseg_attack.threat.objectives.losses import bce, ce, js, margin
from medseg_attack.threat.objectives.softmax import dlr, js_softmax, margin_softmax, spherical
from medseg_attack.threat.objectives.weighted import (
    balanced_bce,
    balanced_ce,
    cosine_bce,
    cosine_ce,
    masked_bce,
    masked_ce,
    masked_margin,
    masked_spherical,
    progressive_bce,
    progressive_ce,
)
from medseg_attack.types import Objective, Task

SOFTMAX_FORM: dict[Objective, Objective] = {
    js: js_softmax,
    masked_bce: masked_ce,
    balanced_bce: balanced_ce,
    masked_margin: masked_spherical,
    progressive_bce: progressive_ce,
    cosine_bce: cosine_ce,
}


EXCLUSIVE_ONLY = (*SOFTMAX_FORM.values(), margin_softmax, spherical, dlr)


_UNMASKED: dict[Objective, Objective] = {
    masked_bce: bce,
    masked_ce: ce,
    balanced_bce: bce,
    balanced_ce: ce,
    progressive_bce: bce,
    progressive_ce: ce,
    masked_margin: margin,
    masked_spherical: spherical,
}


def for_task(objective: Objective, task: Task) -> Objective:
    """The form of an objective that this task is attacked with: the softmax form, if classes exclude each other.

    One that climbs another, such as `toward`, climbs the form of that.

    Raises:
        InputError: the objective compares classes that exclude each other, and these may overlap.
    """
    climbed: Objective | None = getattr(objective, "objective", None)
    if climbed is not None:
        return cast(Objective, replace(cast(Any, objective), objective=for_task(climbed, task)))
    if task.exclusive:
        return SOFTMAX_FORM.get(objective, objective)
    if (objective.function if isinstance(objective, Bound) else objective) in EXCLUSIVE_ONLY:
        entries = {softmax: form for form, softmax in SOFTMAX_FORM.items()}.get(objective, margin)
        raise InputError(
            f"expected an objective for classes that may overlap, as those of {task.name} do, got {spec(objective)}, "
            f"which compares a pixel's true class with the others; take {spec(entries)}"
        )
    return objective


def progress_of(objective: Objective) -> Objective | None:
    """The objective over all entries, of one that masks or weighs them; None of any other.

    By this an attack tells whether its steps pay (arXiv 2306.12941): a mask falls as the attack succeeds.
    """
    climbed: Objective | None = getattr(objective, "objective", None)
    if climbed is None:
        return _UNMASKED.get(objective)
    whole = progress_of(climbed)
    return None if whole is None else cast(Objective, replace(cast(Any, objective), objective=whole))
