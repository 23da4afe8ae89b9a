"""NIfTI label maps over a DICOM series: matched by where voxels lie, not by the order of axes."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from medseg_attack.data.formats.dicom.alignment import Alignment, align
from medseg_attack.data.formats.dicom.series import Grid
from medseg_attack.data.formats.label_values import whole
from medseg_attack.data.formats.nifti import Nifti, label_values, read_nifti
from medseg_attack.data.formats.scan import Array
from medseg_attack.errors import InputError, plural

NIFTI = "NIfTI"  # the kind of such label files


def overlay_of(volume: Nifti, grid: Grid) -> Alignment | None:
    """How the volume lies on the grid; None if its voxels are not voxels of the grid, or none of them is in it."""
    if not np.isfinite(volume.affine).all():
        return None
    to_grid = np.linalg.inv(grid.affine) @ volume.affine
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
