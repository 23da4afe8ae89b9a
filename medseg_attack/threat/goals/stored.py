"""Goals that somebody drew: a mask in a file, and the mask of another patient."""

from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional

from medseg_attack.data.formats.pictures import read_mask
from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.threat.goals.base import Goal
from medseg_attack.types import Case, Donors, Mask, Setting, Task


@register("mask", kind="goal")
@dataclass(frozen=True)
class FromFile(Goal):
    """The mask in a file, the same for every case, stretched onto the grid of each (nearest pixel).

    Attributes:
        file: path of a PNG (grey levels, or the indices of a coloured palette) or an integer NPY of class numbers (of a
            task whose classes may overlap 0 is none and classes count from 1), or a boolean NPY with a channel per
            class.

    Raises:
        InputError: there is no file, or its mask is of another shape.
    """

    file: str = ""

    def prepare(self, setting: Setting) -> None:
        if not self.file:
            raise InputError("expected a file for the goal mask, got none; write mask('wanted.png')")
        self._labels(setting)

    def wanted(self, truth: Mask, setting: Setting) -> Mask:
        return _stretched(self._labels(setting).to(truth.device), truth).expand_as(truth)

    def _labels(self, setting: Setting) -> Mask:
        return setting.computed((self, setting.task), _stored, Path(self.file), setting.task)


def _stored(file: Path, task: Task) -> Mask:
    """The mask of a file, (1, k, *s)."""
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
class AnotherPatient(Goal):
    """The mask of another patient's slice at the same relative height, stretched onto the grid (nearest pixel).

    Attributes:
        draw: number of the draw that picks the patient; another number picks another.

    Raises:
        InputError: there is no data set, or no other patient in the split.
    """

    draw: int = 0

    def prepare(self, setting: Setting) -> None:
        if setting.donors is not None:
            for case in setting.cases:
                self._mask_for(case, setting)

    def wanted(self, truth: Mask, setting: Setting) -> Mask:
        masks = [self._mask_for(case, setting) for case in self.cases_of(truth, setting)]
        return torch.stack(masks).to(truth.device)

    def _mask_for(self, case: Case, setting: Setting) -> Bool[Tensor, "k *s"]:
        donors = setting.donors
        if donors is None:
            raise InputError("another_patient takes masks of a data set, got none; run it through 'medattack attack'")
        return setting.computed(
            (self, case), lambda: _stretched(self.donor_of(case, donors).target[None], case.target[None])[0]
        )

    def donor_of(self, case: Case, donors: Donors) -> Case:
        """The case whose mask is wanted for `case`."""
        others = sorted({ref.volume for ref in donors.refs if ref.group != case.group})
        if not others:
            raise InputError(f"expected a patient other than {case.group} in the split, got none; attack more patients")
        scan = others[crc32(f"{self.draw}/{case.volume}".encode()) % len(others)]  # the same for all of a scan's slices
        slices = sorted((ref for ref in donors.refs if ref.volume == scan), key=lambda ref: ref.index or 0)
        height = 0.5 if case.stack is None else (case.stack.index + 0.5) / case.stack.slices
        return donors.source.read(slices[int(height * len(slices))])
