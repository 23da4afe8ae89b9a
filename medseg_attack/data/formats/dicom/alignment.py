"""Arrays, such as NIfTI label maps, on a series' voxels: its axes in another order, turned round, or a part of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg_attack.data.formats.dicom.series import NEAR, Grid
from medseg_attack.data.formats.label_values import whole
from medseg_attack.data.formats.nifti import Nifti, label_values, read_nifti
from medseg_attack.data.formats.scan import Array, Lattice
from medseg_attack.errors import InputError, plural

NIFTI = "NIfTI"  # the kind of such label files


@dataclass(frozen=True)
class Alignment:
    """The place of an array on a grid.

    Attributes:
        lattice: from the array to (slice, row, column).
        start: the grid's voxel on which the first of these lies; the grid may begin later, or end before.
        grid: the shape of the grid.
    """

    lattice: Lattice
    start: tuple[int, int, int]
    grid: tuple[int, int, int]

    @property
    def stop(self) -> tuple[int, ...]:
        return tuple(s + self.lattice.shape[axis] for s, axis in zip(self.start, self.lattice.axes, strict=True))

    @property
    def covers(self) -> bool:
        """Whether every voxel of the grid is one of the array."""
        return max(self.start) <= 0 and all(end >= n for end, n in zip(self.stop, self.grid, strict=True))

    @property
    def meets(self) -> bool:
        """Whether any voxel of the array is one of the grid."""
        return all(first < n and end > 0 for first, end, n in zip(self.start, self.stop, self.grid, strict=True))

    @property
    def inside(self) -> bool:
        """Whether every voxel of the array is one of the grid."""
        return min(self.start) >= 0 and all(end <= n for end, n in zip(self.stop, self.grid, strict=True))

    def put(self, mask: Array) -> tuple[tuple[slice, ...], Array, int]:
        """The part of the grid that the array has, the mask there, and how many of its voxels lie beyond."""
        ends = list(zip(self.start, self.stop, self.grid, strict=True))
        where = tuple(slice(max(first, 0), max(min(last, n), 0)) for first, last, n in ends)
        overlap = tuple(slice(max(-first, 0), max(min(last, n) - first, 0)) for first, last, n in ends)
        part = self.lattice.from_file(mask)[overlap]
        return where, part, int(mask.sum()) - int(part.sum())


def align(shape: Sequence[int], first: NDArray[np.float64], steps: NDArray[np.float64], grid: Grid) -> Alignment | None:
    """How an array lies on the grid; None if its voxels are no voxels of it, however far it went on.

    Args:
        first: (slice, row, column), with fractions, of the array's first voxel.
        steps: 3 x 3, its columns are how far the array's axes go in the grid at each voxel.
    """
    turn = np.round(steps)
    if not (np.abs(turn).sum(axis=0) == 1).all() or not (np.abs(turn).sum(axis=1) == 1).all():
        return None
    corners = np.array(np.meshgrid(*((0, n - 1) for n in shape), indexing="ij")).reshape(3, -1)
    begin = np.round(first)[:, None]
    if not np.abs(steps @ corners + first[:, None] - turn @ corners - begin).max() <= NEAR:
        return None
    a, b, c = (int(axis) for axis in np.abs(turn).argmax(axis=1))
    flips = turn.sum(axis=1) < 0
    i, j, k = (int(n) for n in (turn @ corners + begin).min(axis=1))
    lattice = Lattice(tuple(shape), (a, b, c), (bool(flips[0]), bool(flips[1]), bool(flips[2])))
    return Alignment(lattice, (i, j, k), grid.shape)


def overlay_of(volume: Nifti, grid: Grid) -> Alignment | None:
    """How the volume lies on the grid; None if its voxels are not voxels of the grid, or none of them is in it."""
    if not np.isfinite(volume.header.affine).all():
        return None
    to_grid = np.linalg.inv(grid.affine) @ volume.header.affine
    overlay = align(volume.stored.shape, to_grid[:3, 3], to_grid[:3, :3], grid)
    return overlay if overlay is not None and overlay.meets else None


def read_label_map(path: Path, grid: Grid, numbers: Iterable[int]) -> Array:
    """A mask of the voxels where the volume, which lies on the grid, has one of the numbers; none outside of it.

    Raises:
        InputError: the file is broken, or has labels beyond the grid.
    """
    volume = read_nifti(path)
    overlay = overlay_of(volume, grid)
    assert overlay is not None  # or it would not belong to the series
    labels, _ = whole(volume.values)
    mask = np.zeros(grid.shape, bool)
    where, part, beyond = overlay.put(np.isin(labels, list(numbers)))
    if beyond:
        raise InputError(
            f"expected labels within the series, got {plural(beyond, 'labelled voxel')} beyond its "
            f"{plural(grid.shape[0], 'slice')} in {path}; add the slices that are missing, or crop the labels"
        )
    mask[where] = part
    return mask


def values_of(path: Path) -> tuple[tuple[int, str], ...]:
    """The labels of a map, without 0, as numbers and names.

    Raises:
        InputError: the file is broken.
    """
    values = label_values(path)
    wrong = values[values != np.round(values)]
    if len(wrong):
        raise InputError(f"expected whole numbers as labels in {path}, got {wrong[0]:g}; write whole numbers")
    return tuple((int(value), str(int(value))) for value in values if value)
