"""NIfTI label maps over a DICOM series: matched by where voxels lie, not by the order of axes."""

from pathlib import Path

import numpy as np

from medseg_attack.data.dicom import NEAR, Grid
from medseg_attack.data.nifti import Nifti, read_nifti
from medseg_attack.data.source import Array, Lattice


def lattice_on(volume: Nifti, grid: Grid) -> Lattice | None:
    """How the volume's array becomes (slice, row, column) of the grid; None if their voxels are not the same."""
    if not np.isfinite(volume.affine).all() or abs(np.linalg.det(volume.affine)) < 1e-12:
        return None
    to_file = np.linalg.inv(volume.affine) @ grid.affine
    turn = np.round(to_file[:3, :3])
    if not (np.abs(turn).sum(axis=0) == 1).all() or not (np.abs(turn).sum(axis=1) == 1).all():
        return None
    axes = np.abs(turn).argmax(axis=0)
    flips = turn.sum(axis=0) < 0
    shape = np.array(volume.stored.shape)
    if tuple(shape[axes]) != grid.shape:
        return None
    corners = np.array(np.meshgrid(*((0, n - 1) for n in grid.shape), indexing="ij")).reshape(3, -1)
    expected = np.empty_like(corners)
    for axis, (of_file, flip) in enumerate(zip(axes, flips, strict=True)):
        expected[of_file] = grid.shape[axis] - 1 - corners[axis] if flip else corners[axis]
    if np.abs(to_file[:3, :3] @ corners + to_file[:3, 3:] - expected).max() > NEAR:
        return None
    first, second, third = (int(axis) for axis in axes)
    return Lattice(volume.stored.shape, (first, second, third), (bool(flips[0]), bool(flips[1]), bool(flips[2])))


def label_map(path: Path, grid: Grid) -> Array | None:
    """The labels on the grid; None if the volume is not on it.

    Raises:
        InputError: the file is broken.
    """
    volume = read_nifti(path)
    lattice = lattice_on(volume, grid)
    if lattice is None:
        return None
    values: Array = lattice.from_file(volume.stored) * np.float64(volume.slope) + volume.inter
    return values


def values_of(path: Path) -> tuple[tuple[int, str], ...]:
    """The labels of a map, without 0, as numbers and names.

    Raises:
        InputError: the file is broken.
    """
    volume = read_nifti(path)
    values = np.unique(volume.stored) * np.float64(volume.slope) + volume.inter
    return tuple((int(value), str(int(value))) for value in values if value and value == int(value))
