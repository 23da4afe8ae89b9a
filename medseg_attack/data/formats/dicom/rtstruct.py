"""DICOM RTSTRUCT: contours in mm, filled on the grid of a series."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medseg_attack.data.formats.dicom.label_files import CLOSED, contour_kind
from medseg_attack.data.formats.dicom.reading import numbers, read_whole, reading
from medseg_attack.data.formats.dicom.series import NEAR, Grid
from medseg_attack.data.formats.scan import Array
from medseg_attack.errors import InputError

_XOR = "CLOSEDPLANAR_XOR"
_TOUCH = 1e-3  # of a voxel's edge: how far a corner may lie outside of the contour that holds it
_EDGE = 0.5  # of a voxel's edge: how far a corner may lie outside of the image without a note
_FARTHEST = 1e5  # mm from the origin of the patient's coordinates; no scanner is as long
_ROUNDING = 0.01  # of a slice's distance: positions in files have few digits


@dataclass(frozen=True, eq=False)
class Contour:
    """A closed contour and where it lies on a grid.

    Attributes:
        kind: its ContourGeometricType.
        slice: the nearest slice; None if it lies beyond the grid, or across slices.
        off_mm: how far its farthest point is from that slice, or from the plane of its first point.
        polygon: its corners as (row, column), (n, 2).
    """

    roi: int
    kind: str
    slice: int | None
    off_mm: float
    polygon: NDArray[np.float64]

    def is_beyond(self, shape: tuple[int, int]) -> bool:
        """Whether a corner lies outside of an image of so many rows and columns, by more than rounding."""
        edge = np.array(shape) - 0.5
        return bool(((self.polygon < -0.5 - _EDGE) | (self.polygon > edge + _EDGE)).any())


@dataclass(frozen=True, eq=False)
class Drawing:
    """The closed contours of an RTSTRUCT, each with its place on a grid.

    Attributes:
        tolerance_mm: how far from a slice a contour of that slice may lie.
    """

    contours: tuple[Contour, ...]
    tolerance_mm: float

    def on_slices(self, roi: int) -> list[Contour]:
        """The contours of a region that lie on slices."""
        return [one for one in self.contours if one.roi == roi and self._is_on(one)]

    def off_slices(self, roi: int) -> list[Contour]:
        """The contours of a region that lie on none."""
        return [one for one in self.contours if one.roi == roi and not self._is_on(one)]

    def _is_on(self, contour: Contour) -> bool:
        return contour.slice is not None and contour.off_mm <= self.tolerance_mm


def read_drawing(path: Path, grid: Grid, tolerance_mm: float = 0.0) -> Drawing:
    """The closed contours of a file on a grid; slices are found by position, whatever UIDs the contours name.

    Args:
        tolerance_mm: how far from its slice a contour may lie; no less than a tenth of the distance of slices, and no
            more than half of it.

    Raises:
        InputError: the file is broken, or moves its contours by ContourOffsetVector.
    """
    apart = grid.spacing_mm[0]
    contours = []
    for roi, kind, points in _contours(path):
        at = grid.index(points)
        nearest = np.round(at[:, 0].mean()) if np.isfinite(at).all() else -1.0
        off = np.abs(at[:, 0] - nearest).max() * apart if nearest >= 0 else np.inf
        inside_grid = 0 <= nearest < grid.shape[0] and off <= apart * (0.5 + _ROUNDING)
        contours.append(Contour(roi, kind, int(nearest) if inside_grid else None, float(off), at[:, 1:]))
    return Drawing(tuple(contours), min(max(tolerance_mm, NEAR * apart), apart / 2) + 1e-6)


def read_rtstruct(path: Path, grid: Grid, rois: Iterable[int], tolerance_mm: float = 0.0) -> dict[int, Array]:
    """Per ROI number a mask of the grid's shape; see `filled` for what is inside.

    Raises:
        InputError: the file is broken.
    """
    drawing = read_drawing(path, grid, tolerance_mm)
    masks = {}
    for number in rois:
        masks[number] = np.zeros(grid.shape, bool)
        by_slice: dict[int, list[Contour]] = defaultdict(list)
        for contour in drawing.on_slices(number):
            assert contour.slice is not None
            by_slice[contour.slice].append(contour)
        for n, contours in by_slice.items():
            masks[number][n] = filled(contours, grid.shape[1:])
    return masks


def filled(contours: Sequence[Contour], shape: tuple[int, int]) -> Array:
    """The pixels whose centres lie within a region's contours on one slice (PS3.3 C.8.8.6.3).

    Contours of the type CLOSEDPLANAR_XOR are combined by exclusive or. Those of the type CLOSED_PLANAR are united, but
    one that lies wholly within another is a hole in it, and one within a hole an island. Copies are one.
    """
    mask = np.zeros(shape, bool)
    for contour in contours:
        if contour.kind == _XOR:
            mask ^= inside(contour.polygon, shape)
    united = np.zeros(shape, bool)
    planar = _distinct([one.polygon for one in contours if one.kind != _XOR])
    for n, polygon in enumerate(planar):
        n_around = sum(_encloses(other, polygon) for other in planar[:n])
        part = inside(polygon, shape)
        united = united & ~part if n_around % 2 else united | part
    return mask | united


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


def _distinct(polygons: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """The polygons from the largest to the smallest, without copies: one that lies in another of its area."""
    distinct: list[NDArray[np.float64]] = []
    for polygon in sorted(polygons, key=_area, reverse=True):
        alike = (other for other in distinct if _area(polygon) >= (1 - 1e-3) * _area(other))
        if not any(_encloses(other, polygon) for other in alike):
            distinct.append(polygon)
    return distinct


def _encloses(outer: NDArray[np.float64], inner: NDArray[np.float64]) -> bool:
    """Whether all corners of a polygon, and the middles of its edges, lie in another or on its edge."""
    low, high = outer.min(axis=0) - _TOUCH, outer.max(axis=0) + _TOUCH
    if (inner < low).any() or (inner > high).any():
        return False
    points = np.concatenate((inner, (inner + np.roll(inner, -1, axis=0)) / 2))
    start, edge = outer, np.roll(outer, -1, axis=0) - outer
    to = points[:, None] - start  # (points, edges, 2)
    crossed = (start[:, 0] <= points[:, None, 0]) != (start[:, 0] + edge[:, 0] <= points[:, None, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        column = start[:, 1] + to[..., 0] * edge[:, 1] / edge[:, 0]
        along = np.clip(np.nan_to_num((to * edge).sum(axis=-1) / (edge**2).sum(axis=-1)), 0, 1)
    within = (crossed & (column > points[:, None, 1])).sum(axis=1) % 2 == 1
    distance = np.linalg.norm(to - along[..., None] * edge, axis=-1).min(axis=1)
    return bool((within | (distance <= _TOUCH)).all())


def _area(polygon: NDArray[np.float64]) -> float:
    rows, columns = polygon.T
    return float(abs(rows @ np.roll(columns, -1) - columns @ np.roll(rows, -1)) / 2)


def _contours(path: Path) -> Iterator[tuple[int, str, NDArray[np.float64]]]:
    """ROI number, type and points in mm, (n, 3), of the closed contours."""
    with reading(path):
        for roi in read_whole(path).get("ROIContourSequence") or []:
            for contour in roi.get("ContourSequence") or []:
                kind = contour_kind(contour)
                if kind in CLOSED:
                    yield int(roi.ReferencedROINumber), kind, _points(contour, path)


def _points(contour: Dataset, path: Path) -> NDArray[np.float64]:
    points = np.array([float(value) for value in contour.ContourData])
    n = contour.get("NumberOfContourPoints")
    if len(points) % 3 or (n is not None and int(n) * 3 != len(points)):
        raise InputError(
            f"expected three numbers for each point of a contour, got {len(points)} for {n} points in {path}; "
            "export it again"
        )
    if not (np.abs(points) <= _FARTHEST).all():
        raise InputError(
            f"expected points of contours within {_FARTHEST / 1000:.0f} m of the origin, got "
            f"{points[~(np.abs(points) <= _FARTHEST)][0]:g} mm in {path}; export it again"
        )
    if any(numbers(contour, "ContourOffsetVector") or ()):
        raise InputError(
            f"expected contours where their points are, got a ContourOffsetVector in {path}; export it without one"
        )
    return points.reshape(-1, 3)
