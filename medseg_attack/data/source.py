"""What a reader of a format provides: a cheap listing of scans, each of which can then be read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from medseg_attack import registry
from medseg_attack.errors import InputError
from medseg_attack.types import PerChannel, Task, per_channel

Array = NDArray[Any]


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

    @property
    def channels(self) -> Array:
        """`stored` with its axis of channels, (channels, slices, rows, columns), also if there is but one."""
        return self.stored if self.stored.ndim == 4 else self.stored[None]

    @property
    def padded(self) -> Array:
        """Where there is padding, in the shape of `channels`."""
        low, high = self.padding or (1, 0)
        where: Array = (self.channels >= low) & (self.channels <= high)
        return where

    def native(self) -> Iterator[Array]:
        """The intensities, (slices, rows, columns), of one channel after the other; NaN where there is padding."""
        for values, padded in zip(self._scaled(), self.padded, strict=True):
            values[padded] = np.nan
            yield values

    def _scaled(self) -> Iterator[Array]:
        if self.scales:
            wide = np.array(self.scales, np.float64)[:, :, None, None]
            return (stored * wide[:, 0] + wide[:, 1] for stored in self.channels)
        n = len(self.channels)
        scales = zip(self.channels, per_channel(self.slope, n), per_channel(self.inter, n), strict=True)
        return (stored * np.float64(slope) + inter for stored, slope, inter in scales)


@dataclass(frozen=True)
class ScanFile:
    """A scan that was found but not read yet.

    Attributes:
        group: the patient.
        path: what an error about its pixels names: the image, or the folder of its slices.
        sources: all files it is read from, those of the image first.
        n_images: how many of them are of the image: one, one per slice, or one per channel.
        part: where the data set itself has put it: "train", "val" or "test"; "" if nowhere.
    """

    id: str
    group: str
    path: Path
    sources: tuple[Path, ...]
    read: Callable[[], Scan]
    n_images: int = 1
    part: str = ""


@dataclass(frozen=True)
class Source:
    """A data set as it was found.

    Attributes:
        format: the spec of its reader.
        scans: sorted by id.
        notes: what was left out and why, a sentence each.
        window: what its intensities are best shown by, as `windows.window_rule` reads it.
    """

    root: Path
    format: str
    task: Task
    scans: tuple[ScanFile, ...]
    notes: tuple[str, ...] = ()
    window: str = "percentile"


@runtime_checkable
class Reader(Protocol):
    """A format: a frozen dataclass whose fields are its options."""

    def listing(self, root: Path) -> Source:
        """What there is under `root`, without reading pixels.

        Raises:
            InputError: `root` is not of this format.
        """
        ...


def open_source(format_spec: str, root: Path, options: Mapping[str, Any] | None = None) -> Source:
    """Lists the data set at `root`, for instance `open_source("uw_madison(drop='none')", root)`.

    Args:
        options: values for fields that the spec leaves open; empty ones are not set.

    Raises:
        InputError: the format is not known, has not such an option, or `root` is not of it.
    """
    given = {name: value for name, value in (options or {}).items() if value}
    name, said = registry.call(format_spec, "dataset")
    for option in given:
        if not registry.takes(name, option) or option in said:
            got = "it is in --format, too" if option in said else "it has no such option"
            raise InputError(f"--{option}: expected an option of {format_spec}, got that {got}; drop --{option}")
    reader: Reader = replace(registry.build(format_spec, "dataset"), **given)
    return reader.listing(root)


def existing(root: Path, what: str) -> Path:
    """`root`, if it is a folder with something in it.

    Raises:
        InputError: it is not.
    """
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise InputError(f"expected {what} in the folder {root}, got {got}; check the path")
    if not any(root.iterdir()):
        raise InputError(f"expected {what} in the folder {root}, got an empty folder; check the path")
    return root


def label_type(task: Task) -> np.dtype[Any]:
    """The smallest unsigned type that holds a voxel's labels."""
    n = len(task.classes)
    return np.min_scalar_type(n - 1 if task.exclusive else 2**n - 1)
