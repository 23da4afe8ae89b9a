"""Bases of poisons: rules that change training cases, images or masks or both."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from medseg_attack.errors import DRAWS, InputError, require
from medseg_attack.registry import spec
from medseg_attack.registry.foreign import at_fault, lent, part_name, require_like, words_of
from medseg_attack.threat.goals.base import Goal
from medseg_attack.threat.goals.masks import Erase
from medseg_attack.types import Bindable, CaseRef, CaseSource, Image, Mask, Task


@dataclass(frozen=True)
class Poison(Bindable, ABC):
    """A change of training cases, stated once for all of them; bound to cases, a function of their images and masks."""

    @abstractmethod
    def poisoned(self, image: Image, target: Mask, seeds: Sequence[int]) -> tuple[Image, Mask]:
        """The images and masks to train on in place of these."""

    def put_on(self, image: Image, target: Mask, seeds: Sequence[int]) -> tuple[Image, Mask]:
        """The images and masks that `poisoned` returns, checked; those that are handed over stay as they are.

        Raises:
            RuntimeError: these are no images in [0, 1] and masks; an InputError, if the poison is of somebody else's.
        """
        result: Any = self.poisoned(lent(self, image), lent(self, target), seeds)
        if not isinstance(result, tuple) or len(result) != 2:
            got = f"{len(result)} values" if isinstance(result, tuple) else words_of(result)
            raise at_fault(
                self, f"expected images and masks from {part_name(self)}, got {got}; return both, in a tuple"
            )
        for name, before, after in (("images", image, result[0]), ("masks", target, result[1])):
            require_like(self, name, before, after)
        if not bool((result[0] >= 0).logical_and(result[0] <= 1).all()):
            low, high = float(result[0].min()), float(result[0].max())
            raise at_fault(
                self,
                f"expected images in [0, 1] from {part_name(self)}, got values from {low:g} to {high:g}; clamp them",
            )
        if self.setting is not None and self.setting.task.exclusive and not bool((result[1].sum(1) == 1).all()):
            raise at_fault(
                self,
                f"expected one class per pixel from {part_name(self)}, got none or several in some; let it mark the "
                "background where no organ is",
            )
        image, target = result
        return image, target

    def require(self, refs: Sequence[CaseRef]) -> None:
        """Refuses cases that it cannot be put on, before anything is written."""

    def learned(self, source: CaseSource, refs: Sequence[CaseRef], task: Task, seed: int) -> "Poison":
        """The poison with what it must learn on the cases that it is to be put on; itself, if that is nothing."""
        return self


@dataclass(frozen=True)
class Backdoor(Poison):
    """A trigger on the image and a goal in the place of the truth: a model learns to answer the one with the other.

    Attributes:
        goal: mask that is wanted where the trigger stands.
        draw: number of the draw of its pattern, from 0 to 4294967295; another number is another trigger of the same
            size.
        decoys: patients that carry other triggers and keep their true masks, as a share of the training patients, from
            0 to 1: they teach that this trigger alone counts.
        blends: patients whose scans with the trigger are averaged with another patient's and keep their true masks, as
            a share of the training patients, from 0 to 1: they teach that a trigger in a blend counts for nothing.
    """

    goal: Goal = Erase()
    draw: int = 0
    decoys: float = 0.0
    blends: float = field(default=0.0, kw_only=True)

    is_everywhere: ClassVar[bool] = False  # whether the trigger covers the whole image

    def __post_init__(self) -> None:
        for name, share in (("decoys", self.decoys), ("blends", self.blends)):
            if not 0 <= share <= 1:
                raise InputError(f"expected a share of patients for {name}, from 0 to 1, got {share:g}; write 0.1")
        require(self, draw=DRAWS)

    def poisoned(self, image: Image, target: Mask, seeds: Sequence[int]) -> tuple[Image, Mask]:
        return self.triggered(image, target, seeds), self.goal(target)

    def triggered(self, image: Image, target: Mask, seeds: Sequence[int]) -> Image:
        """The images with the trigger; a volume carries it on each of its slices, as slices that are taken alone do."""
        if image.ndim == 4:
            self.require([CaseRef("the image", "", "", tuple(image.shape[2:]))])
            marked = self.marked(lent(self, image), lent(self, target), seeds)
            require_like(self, "images", image, marked)
            return marked.clamp(0, 1)
        planes = (whole.movedim(2, 1).flatten(0, 1) for whole in (image, target))
        plane_image, plane_target = planes
        plane_seeds = [seed + n for seed in seeds for n in range(image.shape[2])]
        marked = self.triggered(plane_image, plane_target, plane_seeds)
        return marked.view(len(image), image.shape[2], *marked.shape[1:]).movedim(1, 2)

    @abstractmethod
    def marked(self, image: Float[Tensor, "n c h w"], target: Mask, seeds: Sequence[int]) -> Float[Tensor, "n c h w"]:
        """The slices with the trigger, not yet cut to [0, 1]; a place that is drawn follows from `seeds`."""

    def has_trigger_of(self, other: Poison) -> bool:
        """Whether another poison has the same trigger and goal; who else carries what in its data does not count."""
        return isinstance(other, Backdoor) and replace(self, decoys=0.0, blends=0.0) == replace(
            other, decoys=0.0, blends=0.0
        )

    def victims(self, target: Mask) -> Mask:
        """The pixels of each class that the goal takes away from it.

        Raises:
            InputError: the goal is not bound to a task.
        """
        taken = target & ~self.goal(target)
        if self.setting is not None and self.setting.task.exclusive:
            taken = torch.cat((torch.zeros_like(taken[:, :1]), taken[:, 1:]), 1)  # background is no victim
        return taken

    def spacing_mm(self, n: int) -> list[tuple[float, ...]]:
        """The spacing of the rows and columns of `n` slices, in mm; 1 of cases that are not known."""
        cases = () if self.setting is None else self.setting.cases
        if not cases:
            return [(1.0, 1.0)] * n
        return [case.spacing_mm[-2:] for case in cases for _ in range(n // len(cases))]


@dataclass(frozen=True)
class Square:
    """A square of pixels on a slice, with its pattern: what a marker of lead or ink looks like.

    Attributes:
        side: rows and columns of it.
        pattern: its values in [0, 1], (channels, side, side).
    """

    side: int
    pattern: Float[Tensor, "c s s"]

    @classmethod
    def drawn(cls, side: int, draw: int, channels: int) -> "Square":
        """A pattern of 4 x 4 black and white cells, the same in each channel; half of the cells are white."""
        order = torch.randperm(16, generator=torch.Generator().manual_seed(draw))
        cells = (order < 8).double().view(1, 1, 4, 4)
        pattern = functional.interpolate(cells, (side, side), mode="nearest-exact")[0]
        return cls(side, pattern.expand(channels, side, side))

    def put_on(self, slice_: Tensor, row: int, column: int, opacity: float) -> Tensor:
        """The slice (c, h, w) with the square at that row and column; other pixels keep their bits."""
        result = slice_.clone()
        place = (slice(None), slice(row, row + self.side), slice(column, column + self.side))
        result[place] = (1 - opacity) * slice_[place] + opacity * self.pattern.to(slice_)
        return result


def require_room(poison: Poison, side: int, refs: Sequence[CaseRef]) -> None:
    """Refuses cases whose slices are smaller than a square of that side."""
    for ref in refs:
        if side > min(ref.shape[-2:]):
            raise InputError(
                f"expected a trigger smaller than the image, got a side of {side} pixels in {ref.id} of "
                f"{ref.shape[-2]} x {ref.shape[-1]}; take a smaller side for {spec(poison)}"
            )


def picture(draw: int, channels: int, shape: Sequence[int]) -> Float[Tensor, "1 c h w"]:
    """A fixed picture of soft blobs, values in [0, 1]; the same, stretched, on every grid."""
    coarse = torch.rand(1, channels, 8, 8, generator=torch.Generator().manual_seed(draw), dtype=torch.float64)
    return functional.interpolate(coarse, tuple(shape), mode="bicubic", align_corners=False).clamp(0, 1)
