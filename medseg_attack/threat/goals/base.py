"""Goals: wanted segmentations, among the classes of a task and on certain cases."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from medseg_attack.errors import InputError, require
from medseg_attack.registry import spec
from medseg_attack.registry.foreign import is_foreign, lent, part_name, require_like
from medseg_attack.types import Bindable, Case, Mask, Setting


@dataclass(frozen=True)
class Goal(Bindable, ABC):
    """A wanted segmentation, stated once for all cases; once it is bound, a function from truth to wanted mask."""

    def __post_init__(self) -> None:
        require(self)

    @abstractmethod
    def wanted(self, truth: Mask, setting: Setting) -> Mask:
        """The mask that is wanted in place of `truth`; of an exclusive task its background need not be filled."""

    def __call__(self, truth: Mask) -> Mask:
        if self.setting is None:
            raise InputError(
                f"expected {spec(self)} to be bound to a task, got it unbound; write bind(goal, Setting(task))"
            )
        wanted = self.wanted(lent(self, truth), self.setting)
        require_like(self, "masks", truth, wanted)
        if self.setting.task.exclusive:  # what no organ takes is background
            wanted = torch.cat((~wanted[:, 1:].any(1, keepdim=True), wanted[:, 1:]), 1)
            if is_foreign(self) and bool((wanted.sum(1) > 1).any()):
                raise InputError(
                    f"expected {part_name(self)} to want one class per pixel, got several in one; let it take a pixel "
                    "from one class when it gives it to another"
                )
        return wanted

    def cases_of(self, truth: Mask, setting: Setting) -> tuple[Case, ...]:
        """The cases of `truth`.

        Raises:
            InputError: the goal was not bound to them.
        """
        if len(setting.cases) != len(truth):
            raise InputError(
                f"expected {spec(self)} to be bound to its {len(truth)} cases, got {len(setting.cases)}; "
                "write bind(goal, Setting(task, cases))"
            )
        return setting.cases
