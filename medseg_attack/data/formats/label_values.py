"""The values of a label map as classes: one for each voxel, or regions of several values, which may overlap."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg_attack.data.formats.scan import Array
from medseg_attack.errors import InputError, plural

WHOLE = 1e-3  # values so near to a whole number are that number, which a scale or a float has moved


@dataclass(frozen=True)
class LabelValues:
    """Which values of a label map are which class.

    Attributes:
        values: those of each class, in the order of the task's.
        exclusive: whether a value is of one class only; else classes are regions, and 0 is in none.
        ignore: the value of voxels without a truth, where a data set has one.
    """

    values: tuple[tuple[int, ...], ...]
    exclusive: bool = True
    ignore: int | None = None

    @classmethod
    def single(cls, *values: int) -> "LabelValues":
        """One value for each class."""
        return cls(tuple((value,) for value in values))

    def labels(self, marks: Array, path: Path) -> Array:
        """Class indices of an exclusive task, else bit k for class k, of the values of the map at `path`.

        Raises:
            InputError: a value is of no class.
        """
        known = sorted({0, *(value for values in self.values for value in values)})
        if self.ignore is not None and (n := int((marks == self.ignore).sum())):
            raise InputError(
                f"expected a truth in every voxel, got the label to ignore ({self.ignore}) in {plural(n, 'voxel')} of "
                f"{path}; leave the case out, or label these voxels"
            )
        place = np.searchsorted(known, marks).clip(max=len(known) - 1)
        wrong = np.array(known)[place] != marks
        if wrong.any():
            value = marks[wrong][0]
            action = "name the label in the data set, or correct the mask" if value % 1 == 0 else "write whole numbers"
            raise InputError(
                f"expected the labels {', '.join(map(str, known))}, got {value:g} in "
                f"{plural(int(wrong.sum()), 'voxel')} of {path}; {action}"
            )
        result: Array = np.array([self._code(value) for value in known], self.kind)[place]
        return result

    @property
    def kind(self) -> np.dtype[Any]:
        """The type of labels: the smallest that holds those of all classes."""
        codes = (self._code(value) for values in self.values for value in values)
        return np.min_scalar_type(max([len(self.values) - 1, *codes]))

    def _code(self, value: int) -> int:
        classes = [k for k, values in enumerate(self.values) if value in values]
        if self.exclusive:
            return classes[0] if classes else 0
        return sum(1 << k for k in classes)


def whole(values: Array) -> tuple[Array, bool]:
    """Values of which those near to a whole number are that number, and whether any was moved."""
    if values.dtype.kind in "iu":
        return values, False
    near = np.round(values)
    moved = (np.abs(values - near) <= WHOLE) & (values != near)
    return (np.where(moved, near, values), True) if moved.any() else (values, False)
