"""A scan as a file holds it: stored values, labels, and the way back to the file's own axes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg_attack.types import PerChannel, per_channel

Array = NDArray[Any]

LEAST_MM, MOST_MM = 1e-5, 1e3  # between voxels; electron microscopes and long gaps lie within
LEAST_SCALE, MOST_SCALE = 1e-12, 1e12  # of slopes and intercepts


@dataclass(frozen=True)
class Lattice:
    """How a (slice, row, column) array was made of the file's own: axes permuted, then some reversed.

    Attributes:
        shape: of the file's array.
        axes: the file's axes that became slices, rows and columns.
        flips: which of slices, rows and columns were then reversed.
    """

    shape: tuple[int, ...]
    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    def from_file(self, array: Array) -> Array:
        """(slice, row, column) of the file's array."""
        return self._flipped(array.transpose(self.axes))

    def to_file(self, array: Array) -> Array:
        """The inverse of `from_file`."""
        return self._flipped(array).transpose(tuple(int(axis) for axis in np.argsort(self.axes)))

    def _flipped(self, array: Array) -> Array:
        return array[tuple(slice(None, None, -1 if flip else None) for flip in self.flips)]


@dataclass(frozen=True, eq=False)
class Scan:
    """One scan as it is stored: the intensity of a voxel is `stored * slope + inter`, in `unit`.

    Attributes:
        stored: (slices, rows, columns), in the file's own type; (channels, slices, rows, columns) of several channels.
        labels: (slices, rows, columns); the class index of an exclusive task, else bit k for class k.
        case_ids: one per slice.
        spacing_mm: between slices, rows and columns; the first is 0 for a picture, which is no slice of anything.
        lattice: the way back to the file's array; None where there is none.
        affine: voxel of the file's array to mm, 4 x 4, if the file has one.
        scales: slope and inter of each slice, where they differ from slice to slice; else empty.
        limits: least and largest value that the stored bits hold, if they are not those of the type.
        padding: least and largest stored value that stands for no measurement.
        notes: what was decided while it was read, a phrase about the scan each.
        frames: per slice the file, relative to the source, and the frame in it, where slices have files.
    """

    stored: Array
    labels: Array
    case_ids: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    slope: PerChannel = 1.0
    inter: PerChannel = 0.0
    unit: str = ""
    lattice: Lattice | None = None
    affine: NDArray[np.float64] | None = None
    scales: tuple[tuple[float, float], ...] = ()
    limits: tuple[int, int] | None = None
    padding: tuple[int, int] | None = None
    frames: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> Array:
        """`stored` with its axis of channels, (channels, slices, rows, columns), also if there is but one."""
        return self.stored if self.stored.ndim == 4 else self.stored[None]

    @property
    def doubts(self) -> tuple[str, ...]:
        """Phrases on lengths and scales that no scanner has, whatever the format: a unit or a digit may be wrong."""
        lengths = [mm for mm in self.spacing_mm if mm]  # 0: from a picture to the next
        n = len(self.channels)
        scales = self.scales or list(zip(per_channel(self.slope, n), per_channel(self.inter, n), strict=True))
        odd = next((each for each in scales if not (_is_scale(each[0]) and (not each[1] or _is_scale(each[1])))), None)
        doubts = []
        if not all(LEAST_MM <= mm <= MOST_MM for mm in lengths):
            doubts.append(f"a spacing of {' x '.join(f'{mm:.3g}' for mm in lengths)} mm, which no scanner has")
        if odd is not None:
            doubts.append(f"values of {odd[0]:.3g} x stored {odd[1]:+.3g}, which no scanner has")
        return tuple(doubts)

    @property
    def padded(self) -> Array:
        """A mask of the padding, in the shape of `channels`."""
        low, high = self.padding or (1, 0)
        where: Array = (self.channels >= low) & (self.channels <= high)
        return where

    @property
    def intensities(self) -> list["Intensities"]:
        """The intensities of each channel."""
        n, slices = len(self.channels), len(self.labels)
        if self.scales:
            return [Intensities(stored, self.scales, self.padding) for stored in self.channels]
        scales = zip(per_channel(self.slope, n), per_channel(self.inter, n), strict=True)
        return [
            Intensities(stored, [scale] * slices, self.padding)
            for stored, scale in zip(self.channels, scales, strict=True)
        ]

    def native(self) -> Iterator[Array]:
        """The intensities, (slices, rows, columns), of one channel after the other; NaN where there is padding."""
        return map(np.stack, self.intensities)


@dataclass(frozen=True, eq=False)
class Intensities(Sequence[Array]):
    """The intensities of a channel, slice by slice; NaN where there is padding.

    In float64 a volume takes several times its file, so that no more than a slice is computed at a time.

    Attributes:
        stored: (slices, rows, columns).
        scales: slope and inter of each slice.
        padding: least and largest stored value that stands for no measurement.
    """

    stored: Array
    scales: Sequence[tuple[float, float]]
    padding: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: Any) -> Any:
        stored, (slope, inter) = self.stored[index], self.scales[index]
        values = stored * np.float64(slope) + np.float64(inter)
        if self.padding is not None:
            values[(stored >= self.padding[0]) & (stored <= self.padding[1])] = np.nan
        return values


def _is_scale(value: float) -> bool:
    return LEAST_SCALE <= abs(value) <= MOST_SCALE
