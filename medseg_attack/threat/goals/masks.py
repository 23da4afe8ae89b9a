"""Goals that change the true segmentation: erased, swapped, shifted, grown, shrunk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medseg_attack.errors import InputError
from medseg_attack.numerics.samples import widen
from medseg_attack.registry import register, spec
from medseg_attack.threat.goals.base import Goal
from medseg_attack.threat.organs import organ_classes
from medseg_attack.types import Case, Mask, Setting, Task


@register("erase", kind="goal")
@dataclass(frozen=True)
class Erase(Goal):
    """The truth without one organ, or without any.

    Attributes:
        organ: its name; "" is every organ.
    """

    organ: str = ""

    def prepare(self, setting: Setting) -> None:
        self._classes(setting.task)

    def _classes(self, task: Task) -> Sequence[int]:
        return organ_classes(task, self.organ, "erase")

    def wanted(self, truth: Mask, setting: Setting) -> Mask:
        classes = self._classes(setting.task)
        kept = [k not in classes for k in range(truth.shape[1])]
        return truth & widen(torch.tensor(kept, device=truth.device), truth[0])


@register("all_background", kind="goal")
def all_background() -> Erase:
    """An empty segmentation: no organ anywhere."""
    return Erase()


@register("swap", kind="goal")
@dataclass(frozen=True)
class Swap(Goal):
    """The truth with two organs exchanged: each lies where the other was.

    Attributes:
        a: name of one organ; "" is the first of the task.
        b: name of the other; "" is the last of the task.

    Raises:
        InputError: the task has no such organ, or one is named twice.
    """

    a: str = ""
    b: str = ""

    def prepare(self, setting: Setting) -> None:
        self._classes(setting.task)

    def _classes(self, task: Task) -> tuple[int, int]:
        names = self.a or task.classes[task.scored[0]], self.b or task.classes[task.scored[-1]]
        a, b = (organ_classes(task, name, "swap")[0] for name in names)
        if a == b:
            raise InputError(f"expected two organs of {task.name} to swap, got {names[0]!r} twice; name another")
        return a, b

    def wanted(self, truth: Mask, setting: Setting) -> Mask:
        order = list(range(truth.shape[1]))
        a, b = self._classes(setting.task)
        order[a], order[b] = b, a
        return truth[:, order]


@register("shift", kind="goal")
@dataclass(frozen=True)
class Shift(Goal):
    """The truth with all organs moved, rounded to whole pixels; what leaves the image is lost.

    Attributes:
        dx_mm: distance towards higher columns, in mm; negative towards lower ones.
        dy_mm: distance towards higher rows, in mm.
    """

    dx_mm: float = 10.0
    dy_mm: float = 0.0

    def wanted(self, truth: Mask, setting: Setting) -> Mask:
        def moved(mask: Mask, spacing_mm: Sequence[float]) -> Mask:
            for axis, mm in ((-1, self.dx_mm), (-2, self.dy_mm)):
                mask = _moved(mask, mm / spacing_mm[axis], axis) if mm else mask
            return mask

        return _by_spacing(truth, self.cases_of(truth, setting), moved)


def _moved(mask: Mask, pixels: float, axis: int) -> Mask:
    size = mask.shape[axis]
    n = round(max(-size, min(size, pixels)))
    lost = torch.zeros_like(mask.narrow(axis, 0, abs(n)))
    kept = mask.narrow(axis, max(-n, 0), size - abs(n))
    return torch.cat((lost, kept) if n > 0 else (kept, lost), axis)


@dataclass(frozen=True)
class Rim(Goal):
    """A goal that differs from the truth in a rim of every organ.

    Attributes:
        mm: width of the rim, in mm between centres of pixels, above 0.
    """

    mm: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mm > 0:
            raise InputError(
                f"expected a width above 0 mm, got {spec(self)}; write grow(5), or shrink(5) for its opposite"
            )

    def dilated(self, mask: Mask, setting: Setting) -> Mask:
        """The mask of each case with the rim around it."""
        cases = self.cases_of(mask, setting)
        return _by_spacing(mask, cases, lambda part, spacing_mm: _dilated(part, self.mm, spacing_mm))


@register("grow", kind="goal")
@dataclass(frozen=True)
class Grow(Rim):
    """The truth with a rim around every organ; of an exclusive task earlier organs take background first.

    Attributes:
        mm: width of the rim, in mm between centres of pixels, above 0.
    """

    def wanted(self, truth: Mask, setting: Setting) -> Mask:
        grown = self.dilated(truth, setting)
        if not setting.task.exclusive:
            return grown
        free = ~truth[:, 1:].any(1)
        organs = []
        for k in range(1, truth.shape[1]):
            organs.append(truth[:, k] | (grown[:, k] & free))
            free = free & ~organs[-1]
        return torch.stack([free, *organs], 1)


@register("shrink", kind="goal")
@dataclass(frozen=True)
class Shrink(Rim):
    """The truth with every organ less its rim; the image's edge takes nothing away.

    Attributes:
        mm: width of the rim, in mm between centres of pixels, above 0.
    """

    def wanted(self, truth: Mask, setting: Setting) -> Mask:
        return ~self.dilated(~truth, setting)


def _by_spacing(truth: Mask, cases: Sequence[Case], change: Callable[[Mask, Sequence[float]], Mask]) -> Mask:
    """Each case's mask changed at its own spacing."""
    changed = torch.empty_like(truth)
    for spacing_mm in dict.fromkeys(case.spacing_mm for case in cases):
        positions = [i for i, case in enumerate(cases) if case.spacing_mm == spacing_mm]
        changed[positions] = change(truth[positions], spacing_mm)
    return changed


def _dilated(mask: Mask, mm: float, spacing_mm: Sequence[float]) -> Mask:
    """The pixels at most `mm` from a pixel of the mask, between centres."""
    half_width = [int(mm / own) for own in spacing_mm]
    offsets = [
        torch.arange(-n, n + 1, dtype=torch.float64) * own for n, own in zip(half_width, spacing_mm, strict=True)
    ]
    squares = [offset.square() for offset in offsets]
    distance = squares[0]
    for square in squares[1:]:
        distance = distance[..., None] + square
    kernel = (distance <= mm**2 * (1 + 1e-9)).to(mask.device, torch.float32)
    convolve: Callable[..., Tensor] = (functional.conv1d, functional.conv2d, functional.conv3d)[len(half_width) - 1]
    planes = mask.flatten(0, 1)[:, None].to(torch.float32)
    return (convolve(planes, kernel[None, None], padding=half_width) > 0.5).view_as(mask)
