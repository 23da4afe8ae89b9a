"""DICOM SEG through highdicom: frames put on the voxels of a series by their positions."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from medseg_attack.data.formats.dicom.alignment import Alignment, align
from medseg_attack.data.formats.dicom.decoders import check_decodable, refusing_longer_segments, require_size
from medseg_attack.data.formats.dicom.reading import group, numbers, reading
from medseg_attack.data.formats.dicom.series import Grid
from medseg_attack.data.formats.memory import require_room
from medseg_attack.data.formats.scan import Array
from medseg_attack.errors import InputError, plural

_KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")


def read_seg(path: Path, grid: Grid, segments: Iterable[int], threshold: float) -> dict[int, Array]:
    """Per segment number a mask of the grid's shape; a slice without a frame is empty.

    Args:
        threshold: of FRACTIONAL segments, as a fraction of their maximum; such values and more are inside.

    Raises:
        InputError: the file is broken, or a frame is not on voxels of the grid.
    """
    from highdicom.seg import Segmentation

    segments = set(segments)
    masks = {number: np.zeros(grid.shape, bool) for number in segments}
    with reading(path):
        dataset = pydicom.dcmread(path)
        check_decodable(str(dataset.file_meta.TransferSyntaxUID), path)
        n_frames = _check(dataset, path)
        require_size(dataset, path)
        image = Segmentation.from_dataset(dataset, copy=False) if n_frames else None
        geometries = [_geometry(dataset, n) for n in range(n_frames)]
    kind = str(dataset.SegmentationType)
    once: dict[tuple[int, Alignment], int] = {}
    for n in range(n_frames):
        numbers_in_frame = segments if kind == "LABELMAP" else {_segment(dataset, n)} & segments
        if not numbers_in_frame:
            continue
        with refusing_longer_segments(dataset, path):
            frame = _frame(image, n, path)
        place = _on(geometries[n], n, frame.shape, grid, path)
        first = once.setdefault((0 if kind == "LABELMAP" else _segment(dataset, n), place), n)
        if first != n and not np.array_equal(_frame(image, first, path), frame):
            raise InputError(
                f"expected one frame of a segment in each place, got frames {first} and {n}, which differ, in {path}; "
                "leave it out, or write each version into a file of its own"
            )
        for number in numbers_in_frame:
            where, part, beyond = place.put(_inside(frame, kind, number, dataset, threshold)[None])
            if beyond:
                raise InputError(
                    f"expected segments within the series, got {plural(beyond, 'pixel')} of frame {n} beyond its "
                    f"{plural(grid.shape[0], 'slice')} in {path}; add the slices that are missing, or leave it out"
                )
            masks[number][where] |= part
    return masks


def _frame(image: Any, n: int, path: Path) -> Array:
    with reading(path):
        frame: Array = image.get_stored_frame(n, as_index=True)
    return frame


def _check(dataset: Any, path: Path) -> int:
    """The number of frames; 0 for a file whose segments are all empty.

    Raises:
        InputError: the header contradicts itself, or says what this package does not know.
    """
    kind = str(dataset.get("SegmentationType", ""))
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    n, described = int(dataset.get("NumberOfFrames") or 0), len(groups)
    most = int(dataset.get("MaximumFractionalValue") or 0) if kind == "FRACTIONAL" else 1
    segments = {int(one.SegmentNumber) for one in dataset.get("SegmentSequence") or []}
    strangers = set() if kind == "LABELMAP" else {_segment(dataset, i) for i in range(described)} - segments
    problems = {
        "a SegmentationType of BINARY, FRACTIONAL or LABELMAP, got another": kind not in _KINDS,
        f"Rows and Columns above 0, got {dataset.Rows} and {dataset.Columns}": min(dataset.Rows, dataset.Columns) < 1,
        f"a description of each frame, got {described} of {n}": n != described,
        f"a MaximumFractionalValue from 1 to 255, got {most}": not 1 <= most <= 255,
        f"segments that SegmentSequence describes, got frames of {sorted(strangers)[:3]}": bool(strangers),
    }
    for expected, holds in problems.items():
        if holds:
            raise InputError(f"expected {expected} in {path}; write the segmentation again, or leave it out")
    require_room(path, (dataset.Rows, dataset.Columns))
    return n


def _inside(frame: Array, kind: str, number: int, dataset: Any, threshold: float) -> Array:
    if kind == "LABELMAP":
        result: Array = frame == number
    elif kind == "FRACTIONAL":
        result = frame >= threshold * int(dataset.MaximumFractionalValue)
    else:
        result = frame != 0
    return result


def _segment(dataset: Any, n: int) -> int:
    return int(group(dataset, n, "SegmentIdentificationSequence").ReferencedSegmentNumber)


def _geometry(dataset: Any, n: int) -> tuple[tuple[float, ...] | None, ...]:
    """The position, the orientation and the spacing of a frame, as its header has them."""
    fields = (
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
    )
    return tuple(numbers(group(dataset, n, sequence), name) for sequence, name in fields)


def _on(geometry: Sequence[Any], n: int, shape: tuple[int, ...], grid: Grid, path: Path) -> Alignment:
    """The alignment of a frame's pixels: in a slice of the grid, or across its slices."""
    position, turn, spacing = geometry
    if [len(values or ()) for values in geometry] != [3, 6, 2] or not np.isfinite(np.concatenate(geometry)).all():
        raise InputError(
            f"expected frames with a position in the patient, got none in frame {n} of {path}; leave it out"
        )
    rows_mm, columns_mm = np.array(turn[3:]) * spacing[0], np.array(turn[:3]) * spacing[1]
    first, down, across = grid.index(np.array(position) + np.stack((0 * rows_mm, rows_mm, columns_mm)))
    down, across = down - first, across - first
    through = np.eye(3)[np.abs(down + across).argmin()]  # a frame is one voxel thick
    alignment = align((1, *shape), first, np.stack((through, down, across), axis=1), grid)
    if alignment is None:
        frame_mm, series_mm = (" x ".join(f"{mm:.3g}" for mm in pair) for pair in (spacing, grid.spacing_mm[1:]))
        raise InputError(
            f"expected frames on the slices of the series, {grid.shape[1]} x {grid.shape[2]} pixels of {series_mm} mm, "
            f"got frame {n} of {shape[0]} x {shape[1]} pixels of {frame_mm} mm at {position} in {path}; resample it "
            "onto the series, or leave it out"
        )
    return alignment
