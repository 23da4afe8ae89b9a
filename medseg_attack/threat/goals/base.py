"""What a wanted segmentation is, among the classes of a task and on certain cases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.registry import spec
from medseg_attack.types import Case, Mask, Task


@runtime_checkable
class Goal(Protocol):
    """A wanted segmentation, stated once for all cases."""

    def within(self, task: Task) -> "BoundGoal":
        """The goal among the classes of a task.

        Raises:
            InputError: it names an organ that is not there.
        """
        ...


class Wish(Goal, Protocol):
    """What a registered goal offers beside."""

    def wanted(self, truth: Mask, stated: "BoundGoal") -> Mask:
        """The mask that is wanted where `truth` is; of an exclusive task the background need not be filled."""
        ...


@dataclass(frozen=True, eq=False)
class Labels:
    """A mask as it was stored: (k, *s), or one per case."""

    mask: Tensor


@dataclass(frozen=True)
class BoundGoal:
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

    def within(self, task: Task) -> "BoundGoal":
        """Itself, once more."""
        return self

    def on(self, cases: Sequence[Case]) -> "BoundGoal":
        """The goal on these cases, with what it must read of them."""
        read: Callable[[Sequence[Case]], Labels] | None = getattr(self.goal, "read", None)
        return replace(self, cases=tuple(cases), labels=read(cases) if read else self.labels)

    def at(self, index: Tensor) -> "BoundGoal":
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
