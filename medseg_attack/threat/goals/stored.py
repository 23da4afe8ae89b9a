"""Goals that were drawn by somebody: a mask in a file, and another patient's."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional

from medseg_attack.data.formats.pictures import read_mask
from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.threat.goals.base import BoundGoal, Labels
from medseg_attack.types import Case, Mask, Task


@register("mask", kind="goal")
@dataclass(frozen=True)
class FromFile:
    """The mask in a file, the same for every case, stretched onto its grid (nearest pixel).

    Attributes:
        file: a PNG (grey levels, or the indices of a coloured palette) or an integer NPY of class numbers (of a task
            whose classes may overlap 0 is none and classes count from 1), or a boolean NPY with a channel per class.
    """

    file: str = ""

    def within(self, task: Task) -> BoundGoal:
        if not self.file:
            raise InputError("expected a file for the goal mask, got none; write mask('wanted.png')")
        return BoundGoal(self, task, labels=Labels(_stored(Path(self.file), task)))

    def wanted(self, truth: Mask, stated: BoundGoal) -> Mask:
        assert stated.labels is not None
        return _stretched(stated.labels.mask.to(truth.device), truth).expand_as(truth)


def _stored(file: Path, task: Task) -> Mask:
    """(1, k, *s)."""
    n = len(task.classes)
    array = read_mask(file)
    if array.dtype == np.bool_ and array.shape[0] == n:
        return torch.from_numpy(array)[None]
    first = 0 if task.exclusive else 1
    if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() >= n + first:
        raise InputError(
            f"expected class numbers from 0 to {n + first - 1} in {file}, got {array.dtype} from {array.min()} to "
            f"{array.max()}; write one number per pixel"
        )
    labels = torch.from_numpy(array.astype(np.int64))
    return torch.stack([labels == k + first for k in range(n)])[None]


def _stretched(mask: Bool[Tensor, "n k *t"], like: Mask) -> Bool[Tensor, "n k *s"]:
    if mask.ndim != like.ndim:
        raise InputError(f"expected a wanted mask of {like.ndim - 2} axes, got {mask.ndim - 2}; give one of the scan's")
    return functional.interpolate(mask.float(), like.shape[2:], mode="nearest-exact") > 0.5


@register("another_patient", kind="goal")
@dataclass(frozen=True)
class AnotherPatient:
    """The mask of another patient's slice at the same relative height, stretched onto the grid (nearest pixel).

    Attributes:
        draw: which patient; another number is another one.
    """

    draw: int = 0

    def among(self, data: Any, refs: Sequence[Any]) -> "Donors":
        """The goal with the cases whose masks it may take."""
        return Donors(self.draw, data, tuple(refs))

    def within(self, task: Task) -> BoundGoal:
        return BoundGoal(self, task)

    def wanted(self, truth: Mask, stated: BoundGoal) -> Mask:
        raise InputError("another_patient takes masks of a data set, got none; run it through 'medattack attack'")


@dataclass(frozen=True)
class Donors:
    """`another_patient` on a data set: `data.read(ref)` gives the case of each of `refs`."""

    draw: int
    data: Any = field(compare=False)
    refs: tuple[Any, ...]

    def within(self, task: Task) -> BoundGoal:
        return BoundGoal(self, task)

    def wanted(self, truth: Mask, stated: BoundGoal) -> Mask:
        stated.known(truth)
        assert stated.labels is not None
        return stated.labels.mask.to(truth.device)

    def read(self, cases: Sequence[Case]) -> Labels:
        """The masks for these cases."""
        return Labels(torch.cat([_stretched(self._donor(case).target[None], case.target[None]) for case in cases]))

    def _donor(self, case: Case) -> Case:
        others = sorted({ref.volume for ref in self.refs if ref.group != case.group})
        if not others:
            raise InputError(f"expected a patient other than {case.group} in the split, got none; attack more patients")
        scan = others[crc32(f"{self.draw}/{case.volume}".encode()) % len(others)]  # the same for all of a scan's slices
        slices = sorted((ref for ref in self.refs if ref.volume == scan), key=lambda ref: ref.id)
        height = 0.5 if case.stack is None else (case.stack.index + 0.5) / case.stack.slices
        donor: Case = self.data.read(slices[int(height * len(slices))])
        return donor
