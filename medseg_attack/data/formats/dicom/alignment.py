"""Arrays whose voxels are voxels of a series: its axes in another order, turned round, or a part of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg_attack.data.formats.dicom.series import NEAR, Grid
from medseg_attack.data.formats.scan import Array, Lattice


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
