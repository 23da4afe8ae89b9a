"""DICOM SEG through highdicom: frames put on the slices of a series by their positions."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from medseg_attack.data.dicom import NEAR, Grid
from medseg_attack.data.dicom_decoders import check_decodable
from medseg_attack.data.dicom_files import group, numbers, reading
from medseg_attack.data.source import Array
from medseg_attack.errors import InputError


def read_seg(path: Path, grid: Grid, segments: Iterable[int], threshold: float) -> dict[int, Array]:
    """Per segment number a mask of the grid's shape; a slice without a frame is empty.

    Args:
        threshold: of FRACTIONAL segments, as a fraction of their maximum; such values and more are inside.

    Raises:
        InputError: the file is broken, or a frame is not on a slice of the grid.
    """
    from highdicom.seg import Segmentation

    wanted = set(segments)
    masks = {number: np.zeros(grid.shape, bool) for number in wanted}
    with reading(path):
        dataset = pydicom.dcmread(path)
        check_decodable(str(dataset.file_meta.TransferSyntaxUID), path)
        frames = Segmentation.from_dataset(dataset, copy=False).get_stored_frames()
    kind = str(dataset.SegmentationType)
    for n, frame in enumerate(frames):
        here = wanted if kind == "LABELMAP" else {_segment(dataset, n)} & wanted
        if not here:
            continue
        at = _slice(dataset, n, frame.shape, grid, path)
        for number in here:
            masks[number][at] |= _inside(frame, kind, number, dataset, threshold)
    return masks


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


def _slice(dataset: Any, n: int, shape: tuple[int, ...], grid: Grid, path: Path) -> int:
    """The slice whose first and last pixels are those of the frame."""
    position = numbers(group(dataset, n, "PlanePositionSequence"), "ImagePositionPatient")
    turn = numbers(group(dataset, n, "PlaneOrientationSequence"), "ImageOrientationPatient")
    spacing = numbers(group(dataset, n, "PixelMeasuresSequence"), "PixelSpacing")
    if position is None or turn is None or spacing is None:
        raise InputError(
            f"expected frames with a position in the patient, got none in frame {n} of {path}; leave it out"
        )
    step_column, step_row = np.array(turn[:3]) * spacing[1], np.array(turn[3:]) * spacing[0]
    rows, columns = grid.shape[1:]
    corners = np.array([(0, 0), (rows - 1, 0), (0, columns - 1)])
    points = np.array(position) + corners @ np.stack((step_row, step_column))
    at = grid.index(points)
    place = round(float(at[0, 0]))
    expected = np.column_stack((np.full(3, place), corners))
    if shape != (rows, columns) or not 0 <= place < grid.shape[0] or np.abs(at - expected).max() > NEAR:
        raise InputError(
            f"expected frames on the slices of the series, {rows} x {columns}, got frame {n} of {shape[0]} x "
            f"{shape[1]} at {position} in {path}; resample it onto the series, or leave it out"
        )
    return place
