"""DICOM RTSTRUCT: contours in mm, filled on the grid of a series."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg_attack.data.formats.dicom.reading import read_whole, reading
from medseg_attack.data.formats.dicom.series import NEAR, Grid
from medseg_attack.data.formats.scan import Array

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


@dataclass(frozen=True, eq=False)
class Contour:
    """A closed contour on a slice: its corners as (row, column), (n, 2)."""

    roi: int
    slice: int
    polygon: NDArray[np.float64]


def contours_on(path: Path, grid: Grid) -> tuple[list[Contour], Counter[int]]:
    """The contours that lie on slices of the grid, and per ROI number how many do not.

    Slices are found by position, whatever UIDs the contours name. Points and open contours count as lying on none.

    Raises:
        InputError: the file is broken.
    """
    contours, off = [], Counter[int]()
    for roi, points in _contours(path):
        at = grid.index(points)
        slices = np.unique(np.round(at[:, 0]))
        if len(slices) == 1 and 0 <= slices[0] < grid.shape[0] and np.abs(at[:, 0] - slices[0]).max() <= NEAR:
            contours.append(Contour(roi, int(slices[0]), at[:, 1:]))
        else:
            off[roi] += 1
    return contours, off


def read_rtstruct(path: Path, grid: Grid, rois: Iterable[int]) -> dict[int, Array]:
    """Per ROI number a mask of the grid's shape.

    A voxel is inside if its centre is, by the even-odd rule over all contours that the ROI has on that slice: a contour
    in a contour is a hole.

    Raises:
        InputError: the file is broken.
    """
    masks = {number: np.zeros(grid.shape, bool) for number in rois}
    for contour in contours_on(path, grid)[0]:
        if contour.roi in masks:
            masks[contour.roi][contour.slice] ^= inside(contour.polygon, grid.shape[1:])
    return masks


def inside(polygon: NDArray[np.float64], shape: tuple[int, int]) -> Array:
    """Whether the centres of pixels lie in a closed polygon of (row, column) corners, by the even-odd rule.

    An edge belongs to the pixels after it, in rows and in columns, so that polygons that share an edge share no pixel.
    """
    crossings = np.zeros((shape[0], shape[1] + 1), bool)
    for (row, column), (row_to, column_to) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        first, last = np.ceil((min(row, row_to), max(row, row_to))).clip(0, shape[0]).astype(int)
        if first == last:
            continue
        rows = np.arange(first, last)
        at = column + (rows - row) * (column_to - column) / (row_to - row)
        crossings[rows, np.ceil(at).clip(0, shape[1]).astype(int)] ^= True
    odd: Array = np.logical_xor.accumulate(crossings[:, :-1], axis=1)
    return odd


def _contours(path: Path) -> list[tuple[int, NDArray[np.float64]]]:
    """ROI number and points in mm, (n, 3); no points for a contour that is not closed."""
    polygons = []
    with reading(path):
        for roi in read_whole(path).get("ROIContourSequence") or []:
            for contour in roi.get("ContourSequence") or []:
                points = np.array([float(value) for value in contour.get("ContourData") or []])
                closed = contour.get("ContourGeometricType") in _CLOSED
                polygons.append((int(roi.ReferencedROINumber), points.reshape(-1, 3)[: len(points) if closed else 0]))
    return polygons
