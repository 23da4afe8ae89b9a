"""What a targeted attack wants to see: pure functions from the true mask to the wanted one, and `toward` them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from medseg_attack.criteria import ByDice, Criterion
from medseg_attack.errors import InputError, nearest
from medseg_attack.objectives import bce
from medseg_attack.registry import register, spec
from medseg_attack.types import Case, LogOdds, Mask, Objective, Task
from medseg_attack.weighted import TOWARD


@runtime_checkable
class Goal(Protocol):
    """A wanted segmentation, stated once for all cases."""

    def within(self, task: Task) -> "Stated":
        """The goal among the classes of a task.

        Raises:
            InputError: it names an organ that is not there.
        """
        ...


class Wish(Goal, Protocol):
    """What a registered goal offers beside."""

    def wanted(self, truth: Mask, stated: "Stated") -> Mask:
        """The mask that is wanted where `truth` is; of an exclusive task the background need not be filled."""
        ...


@dataclass(frozen=True, eq=False)
class Labels:
    """A mask as it was stored: (k, *s), or one per case."""

    mask: Tensor


@dataclass(frozen=True)
class Stated:
    """A goal among the classes of a task, on certain cases: the function from truth to wanted mask.

    Attributes:
        classes: what the goal's names are in channels.
        labels: of a goal that is a stored mask.
        cases: what a goal in mm needs; empty until it is told.
    """

    goal: Wish
    task: Task
    classes: tuple[int, ...] = ()
    labels: Labels | None = field(default=None, compare=False)
    cases: tuple[Case, ...] = field(default=(), compare=False)

    def within(self, task: Task) -> "Stated":
        """Itself, once more."""
        return self

    def on(self, cases: Sequence[Case]) -> "Stated":
        """The goal on these cases, with what it must read of them."""
        read: Callable[[Sequence[Case]], Labels] | None = getattr(self.goal, "read", None)
        return replace(self, cases=tuple(cases), labels=read(cases) if read else self.labels)

    def at(self, index: Tensor) -> "Stated":
        """The goal on some of its cases; a stored mask may be one for all of them."""
        labels, some = self.labels, index.tolist()
        if labels is not None and len(labels.mask) > 1:
            labels = Labels(labels.mask[index.to(labels.mask.device)])
        return replace(self, cases=tuple(self.cases[i] for i in some), labels=labels)

    def __call__(self, truth: Mask) -> Mask:
        wanted = self.goal.wanted(truth, self)
        if self.task.exclusive:  # what no organ takes is background
            wanted = torch.cat((~wanted[:, 1:].any(1, keepdim=True), wanted[:, 1:]), 1)
        return wanted

    def known(self, truth: Mask) -> tuple[Case, ...]:
        """The cases of `truth`.

        Raises:
            InputError: they were not told.
        """
        if len(self.cases) != len(truth):
            raise InputError(
                f"expected {spec(self.goal)} to be told its {len(truth)} cases, got {len(self.cases)}; "
                "state it .within(task).on(cases)"
            )
        return self.cases


def _organ(name: str, task: Task, of: Goal) -> int:
    organs = [task.classes[k] for k in task.scored]
    if name not in organs:
        raise InputError(f"expected {spec(of)} to name an organ of {task.name}, got {name!r}; {nearest(name, organs)}")
    return task.classes.index(name)


@register("erase", kind="goal")
@dataclass(frozen=True)
class Erase:
    """That organ is not there, or, without a name, none.

    Attributes:
        organ: by name; "" is every organ.
    """

    organ: str = ""

    def within(self, task: Task) -> Stated:
        return Stated(self, task, (_organ(self.organ, task, self),) if self.organ else tuple(task.scored))

    def wanted(self, truth: Mask, stated: Stated) -> Mask:
        kept = [k not in stated.classes for k in range(truth.shape[1])]
        return truth & torch.tensor(kept, device=truth.device).view(-1, *(1 for _ in truth.shape[2:]))


@register("all_background", kind="goal")
def all_background() -> Erase:
    """No organ anywhere."""
    return Erase()


@register("swap", kind="goal")
@dataclass(frozen=True)
class Swap:
    """Each of two organs where the other is; by default the first and the last of the task."""

    a: str = ""
    b: str = ""

    def within(self, task: Task) -> Stated:
        names = self.a or task.classes[task.scored[0]], self.b or task.classes[task.scored[-1]]
        a, b = (_organ(name, task, self) for name in names)
        if a == b:
            raise InputError(f"expected two organs of {task.name} to swap, got {names[0]!r} twice; name another")
        return Stated(self, task, (a, b))

    def wanted(self, truth: Mask, stated: Stated) -> Mask:
        order = list(range(truth.shape[1]))
        a, b = stated.classes
        order[a], order[b] = b, a
        return truth[:, order]


@register("shift", kind="goal")
@dataclass(frozen=True)
class Shift:
    """All organs moved, rounded to whole pixels; what leaves the image is lost.

    Attributes:
        dx_mm, dy_mm: towards higher columns and rows.
    """

    dx_mm: float = 10.0
    dy_mm: float = 0.0

    def within(self, task: Task) -> Stated:
        return Stated(self, task)

    def wanted(self, truth: Mask, stated: Stated) -> Mask:
        def moved(mask: Mask, spacing_mm: Sequence[float]) -> Mask:
            for axis, mm in ((-1, self.dx_mm), (-2, self.dy_mm)):
                mask = _moved(mask, round(mm / spacing_mm[axis]), axis) if mm else mask
            return mask

        return _by_spacing(truth, stated, moved)


def _moved(mask: Mask, n: int, axis: int) -> Mask:
    size = mask.shape[axis]
    n = max(-size, min(size, n))
    lost = torch.zeros_like(mask.narrow(axis, 0, abs(n)))
    kept = mask.narrow(axis, max(-n, 0), size - abs(n))
    return torch.cat((lost, kept) if n > 0 else (kept, lost), axis)


@register("grow", kind="goal")
@dataclass(frozen=True)
class Grow:
    """Every organ with a rim of that width; of an exclusive task only background is taken, first come, first served."""

    mm: float = 5.0

    def __post_init__(self) -> None:
        _positive(self, self.mm)

    def within(self, task: Task) -> Stated:
        return Stated(self, task)

    def wanted(self, truth: Mask, stated: Stated) -> Mask:
        grown = _by_spacing(truth, stated, lambda mask, spacing_mm: _dilated(mask, self.mm, spacing_mm))
        if not stated.task.exclusive:
            return grown
        free = ~truth[:, 1:].any(1)
        organs = []
        for k in range(1, truth.shape[1]):
            organs.append(truth[:, k] | (grown[:, k] & free))
            free = free & ~organs[-1]
        return torch.stack([free, *organs], 1)


@register("shrink", kind="goal")
@dataclass(frozen=True)
class Shrink:
    """Every organ without a rim of that width; the image's edge takes nothing away."""

    mm: float = 5.0

    def __post_init__(self) -> None:
        _positive(self, self.mm)

    def within(self, task: Task) -> Stated:
        return Stated(self, task)

    def wanted(self, truth: Mask, stated: Stated) -> Mask:
        return ~_by_spacing(~truth, stated, lambda mask, spacing_mm: _dilated(mask, self.mm, spacing_mm))


def _positive(goal: Goal, mm: float) -> None:
    if not mm > 0:
        raise InputError(f"expected a width above 0 mm, got {spec(goal)}; shrink is the opposite of grow")


def _by_spacing(truth: Mask, stated: Stated, change: Callable[[Mask, Sequence[float]], Mask]) -> Mask:
    """Each case's mask changed at its own spacing."""
    spacings = [case.spacing_mm for case in stated.known(truth)]
    made = torch.empty_like(truth)
    for spacing_mm in dict.fromkeys(spacings):
        at = [i for i, own in enumerate(spacings) if own == spacing_mm]
        made[at] = change(truth[at], spacing_mm)
    return made


def _dilated(mask: Mask, mm: float, spacing_mm: Sequence[float]) -> Mask:
    """What lies at most `mm` from a pixel of the mask, between centres."""
    reach = [int(mm / own) for own in spacing_mm]
    offsets = [torch.arange(-n, n + 1, dtype=torch.float64) * own for n, own in zip(reach, spacing_mm, strict=True)]
    squares = [offset.square() for offset in offsets]
    distance = squares[0]
    for square in squares[1:]:
        distance = distance[..., None] + square
    kernel = (distance <= mm**2 * (1 + 1e-9)).to(mask.device, torch.float32)
    convolve: Callable[..., Tensor] = (functional.conv1d, functional.conv2d, functional.conv3d)[len(reach) - 1]
    planes = mask.flatten(0, 1)[:, None].to(torch.float32)
    return (convolve(planes, kernel[None, None], padding=reach) > 0.5).view_as(mask)


@register("toward", kind="objective")
@dataclass(frozen=True)
class Toward:
    """Climbs towards a goal: what an objective would lose if the goal were the truth, negated.

    The one place with a minus sign. It takes functions of every entry as it takes objectives.

    Attributes:
        success: when the goal counts as reached, in the tables.
    """

    objective: Objective = bce
    goal: Goal = Erase()
    success: Criterion = ByDice()

    def __call__(self, log_odds: LogOdds, target: Mask, progress: float = 1.0) -> Tensor:
        if not isinstance(self.goal, Stated):
            raise InputError(f"expected {spec(self.goal)} within a task, got it unbound; state it .within(task)")
        objective = TOWARD.get(self.objective, self.objective)
        return -objective(log_odds, self.goal(target), progress)
