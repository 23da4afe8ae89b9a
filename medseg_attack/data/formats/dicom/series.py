"""The slices of one DICOM series, in order along their normal: stored values as they are, geometry from positions.

Which files make the series is decided in `index`.

Directions are DICOM's: x to the patient's left, y to the back, z to the head, in mm. Slices run towards the left, the
back or the head, whichever is nearest to their normal; rows and columns are as stored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg_attack.data.formats.dicom.decoders import check_decodable, decoded
from medseg_attack.data.formats.dicom.fields import ASSUMED_HU, is_direction
from medseg_attack.data.formats.dicom.index import Frame, Pixels, UncheckedSeries
from medseg_attack.data.formats.memory import require_room
from medseg_attack.data.formats.scan import Array
from medseg_attack.errors import InputError, plural

NEAR = 0.1  # of a voxel's edge: what counts as one place
_UNEVEN = 0.05  # of the distance between slices: positions are rounded
_TURNED = 1e-3  # of a direction's cosine
_UPRIGHT = 0.1  # degrees that the way through the slices may lean


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid of voxels in the patient.

    Attributes:
        origin: centre of voxel (0, 0, 0), in mm.
        steps: 3 x 3, its columns are the mm from one slice, row and column to the next.
    """

    shape: tuple[int, int, int]
    origin: NDArray[np.float64]
    steps: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Between slices (along their normal), rows and columns."""
        normal = np.cross(self.steps[:, 1], self.steps[:, 2])
        through = abs(self.steps[:, 0] @ normal) / np.linalg.norm(normal)
        row, column = np.linalg.norm(self.steps[:, 1:], axis=0)
        return float(through), float(row), float(column)

    @property
    def lean(self) -> float:
        """Degrees between the way through the slices and their normal."""
        cosine = self.spacing_mm[0] / float(np.linalg.norm(self.steps[:, 0]))
        return float(np.degrees(np.arccos(min(cosine, 1.0))))

    @property
    def affine(self) -> NDArray[np.float64]:
        """The map from (slice, row, column) to mm towards right, front and head, as NIfTI has it; 4 x 4."""
        result = np.eye(4)
        result[:3, :3], result[:3, 3] = self.steps, self.origin
        return np.diag((-1.0, -1.0, 1.0, 1.0)) @ result

    def index(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(slice, row, column), with fractions, of points in mm, (n, 3)."""
        return np.linalg.solve(self.steps, (points - self.origin).T).T.astype(np.float64)


@dataclass(frozen=True, eq=False)
class Series:
    """A series that is one scan.

    Attributes:
        frames: in the order of the slices.
    """

    images: UncheckedSeries
    frames: tuple[Frame, ...]
    grid: Grid
    pixels: Pixels

    @property
    def scales(self) -> tuple[tuple[float, float], ...]:
        """Slope and intercept of each slice, turned round where `inverted`."""
        scales = ((frame.slope, frame.inter) for frame in self.frames)
        if not self.inverted:
            return tuple(scales)
        ends = sum(self.pixels.limits)
        return tuple((-slope, slope * ends + inter) for slope, inter in scales)

    @property
    def inverted(self) -> bool:
        """Whether the least value is white (MONOCHROME1) and there is no unit that says what it measures.

        MONOCHROME1 is about display alone (PS3.3 C.7.6.3.1.2): Hounsfield units and whatever else has a unit stay.
        """
        return self.pixels.photometric == "MONOCHROME1" and not self.unit

    @property
    def unit(self) -> str:
        """The unit of intensities, a word of the standard; "" if there is none."""
        return self.frames[0].unit

    @property
    def remarks(self) -> Iterator[str]:
        """Doubts about it that a reader of results should know, a sentence each."""
        yield from self.images.remarks
        if self.unit == ASSUMED_HU:
            yield "a CT without RescaleSlope and RescaleIntercept: its stored values are assumed to be HU"
        through, apart = self.grid.spacing_mm[0], self.frames[0].apart
        if len(self.frames) == 1 and not self.frames[0].thickness:
            yield "one slice without a thickness: 1 mm is assumed"
        if len(self.frames) > 1 and apart and abs(apart - through) > _UNEVEN * through:
            yield f"SpacingBetweenSlices is {apart:.4g} mm, and positions are {through:.4g} mm apart: positions count"
        if self.grid.lean > _UPRIGHT:
            yield (
                f"its slices are stacked at {self.grid.lean:.3g} degrees (a tilted gantry): "
                "distances in mm are measured as if they were stacked upright"
            )

    @property
    def padding(self) -> tuple[int, int] | None:
        """Least and largest stored value that stands for no measurement."""
        paddings = {frame.padding for frame in self.frames} - {None}
        return next(iter(paddings), None)


def series_of(images: UncheckedSeries) -> Series:
    """The series with its slices in order.

    Raises:
        InputError: it is not one scan: slices are missing, doubled, not parallel, not told where they are, or stored
            in different ways; or its pixels cannot be decoded here, or mean what this package does not read.
    """
    if images.refusals:
        raise InputError(f"the series {images.uid} in {images.frames[0].path.parent}: {images.refusals[0]}")
    pixels = _one_format(images)
    for syntax, path in images.syntaxes:
        check_decodable(syntax, path)
    frames = _located(images)
    turn = np.array(frames[0].orientation)
    column_step, row_step = turn[:3], turn[3:]
    normal = np.cross(column_step, row_step)
    normal *= np.sign(normal[np.abs(normal).argmax()])
    at = np.array([frame.position for frame in frames])
    order = np.argsort(at @ normal, kind="stable")
    frames, at = [frames[i] for i in order], at[order]
    assert frames[0].spacing is not None
    if len(frames) > 1:
        _check_places(images, frames, at @ normal)
        through = (at[-1] - at[0]) / (len(at) - 1)
        _check_line(images, at, through)
    else:
        through = normal * (frames[0].thickness or 1.0)
    require_room(frames[0].path, (len(frames), pixels.rows, pixels.columns))
    between_rows, between_columns = frames[0].spacing
    steps = np.stack((through, row_step * between_rows, column_step * between_columns), axis=1)
    return Series(images, tuple(frames), Grid((len(frames), pixels.rows, pixels.columns), at[0], steps), pixels)


def read_stored(series: Series) -> Array:
    """Stored values, (slices, rows, columns), in the type that the files say.

    Raises:
        InputError: a file is cut off or cannot be decoded.
    """
    by_file: dict[Path, list[int]] = {}
    for n, frame in enumerate(series.frames):
        by_file.setdefault(frame.path, []).append(n)
    kind = f"{'i' if series.pixels.signed else 'u'}{series.pixels.allocated // 8}"
    stored = np.empty(series.grid.shape, np.dtype(kind))
    for path, slices in by_file.items():
        frames = decoded(path)
        for n in slices:
            stored[n] = frames[series.frames[n].number]
    return stored


def _one_format(images: UncheckedSeries) -> Pixels:
    first = images.formats[0]
    if len(images.formats) > 1:
        differ = next(
            n
            for n in ("rows", "columns", "bits", "signed", "photometric", "allocated")
            if len({getattr(one, n) for one in images.formats}) > 1
        )
        got = ", ".join(sorted({str(getattr(one, differ)) for one in images.formats}))
        raise _wrong(images, f"slices stored in one way, got {differ} {got}", "split the series")
    if not first.photometric.startswith("MONOCHROME") or first.allocated not in (8, 16, 32):
        what = f"{first.photometric} pixels in {first.allocated} bits"
        raise _wrong(images, f"grey values of 8, 16 or 32 bits, got {what}", "export it as CT or MR images")
    return first


def _located(images: UncheckedSeries) -> list[Frame]:
    """The frames, which are all parallel, of one spacing, and know where they are."""
    frames = list(images.frames)
    for frame in frames:
        for name, value, n in (
            ("ImagePositionPatient", frame.position, 3),
            ("PixelSpacing", frame.spacing, 2),
            ("ImageOrientationPatient", frame.orientation, 6),
        ):
            if value is None or len(value) != n or not np.isfinite(value).all():
                raise _wrong(images, f"{name} in every slice, got {value} in {frame.path}", "export it again")
        _check_frame(images, frame)
        if np.abs(np.array(frame.orientation) - np.array(frames[0].orientation)).max() > _TURNED:
            got = " and ".join(f"{one.orientation} in {one.path.name}" for one in (frames[0], frame))
            raise _wrong(images, f"slices of one orientation, got {got}", "leave the localizer out")
        if not np.allclose(np.array(frame.spacing), np.array(frames[0].spacing), rtol=1e-3):
            got = " and ".join(f"{one.spacing} in {one.path.name}" for one in (frames[0], frame))
            raise _wrong(images, f"slices of one pixel spacing, got {got}", "split the series")
    units = sorted({frame.unit for frame in frames})
    if len(units) > 1:
        got = " and ".join(unit or "none" for unit in units)
        raise _wrong(images, f"one unit in all slices, got {got}", "split the series")
    paddings = {frame.padding: frame.path.name for frame in frames if frame.padding is not None}
    if len(paddings) > 1:
        got = " and ".join(f"{low} to {high} in {name}" for (low, high), name in sorted(paddings.items())[:2])
        raise _wrong(images, f"one PixelPaddingValue in all slices, got {got}", "export it again")
    return frames


def _check_frame(images: UncheckedSeries, frame: Frame) -> None:
    """Raises on directions, lengths and scales that no image can have."""
    assert frame.orientation is not None
    assert frame.spacing is not None
    if not is_direction(frame.orientation):
        got = f"{frame.orientation} in {frame.path.name}"
        raise _wrong(images, f"two unit vectors at a right angle in ImageOrientationPatient, got {got}", "repair it")
    if min(frame.spacing) <= 0:
        raise _wrong(images, f"PixelSpacing above 0, got {frame.spacing} in {frame.path.name}", "repair it")
    if not np.isfinite((frame.slope, frame.inter)).all() or frame.slope == 0:
        got = f"{frame.slope:g} and {frame.inter:g} in {frame.path.name}"
        raise _wrong(images, f"a RescaleSlope other than 0 and a RescaleIntercept, got {got}", "export it again")


def _check_places(images: UncheckedSeries, frames: Sequence[Frame], along: NDArray[np.float64]) -> None:
    """Raises on doubled and missing slices."""
    apart = np.diff(along)
    usual = float(np.median(apart))
    for (one, other), mm in zip(pairwise(frames), apart, strict=True):
        if mm < 1e-3 or mm < NEAR * usual:
            both = " and ".join(f"{frame.path.name} (frame {frame.number})" for frame in (one, other))
            raise _wrong(
                images,
                f"one image at each position, got {both} at {one.position}",
                "take copies away, or export each time point, echo or b-value as its own series",
            )
    for (one, other), mm in zip(pairwise(frames), apart, strict=True):
        n = round(mm / usual)
        if n > 1 and abs(mm / usual - n) <= n * _UNEVEN:
            gap = f"{mm:.4g} mm between {one.path.name} and {other.path.name}: {plural(n - 1, 'slice')} missing"
            raise _wrong(images, f"slices {usual:.4g} mm apart, got {gap}", "export it again, or resample it")


def _check_line(images: UncheckedSeries, at: NDArray[np.float64], through: NDArray[np.float64]) -> None:
    off = np.linalg.norm(at - at[0] - np.outer(np.arange(len(at)), through), axis=1)
    if off.max() > max(_UNEVEN * float(np.linalg.norm(through)), 1e-3):
        apart = np.linalg.norm(np.diff(at, axis=0), axis=1)
        got = f"distances from {apart.min():.4g} to {apart.max():.4g} mm, one slice {off.max():.4g} mm from its place"
        raise _wrong(images, f"slices at equal distances on one line, got {got}", "resample it, or leave it out")


def _wrong(images: UncheckedSeries, expected: str, todo: str) -> InputError:
    return InputError(f"the series {images.uid} in {images.frames[0].path.parent}: expected {expected}; {todo}")


def files_of(series: Series) -> Iterator[Path]:
    """Its files, each once, in the order of the slices."""
    yield from dict.fromkeys(frame.path for frame in series.frames)
