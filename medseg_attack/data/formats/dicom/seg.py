"""DICOM SEG through highdicom: frames put on the voxels of a series by their positions."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from medseg_attack.data.formats.dicom.alignment import Alignment, align
from medseg_attack.data.formats.dicom.decoders import check_decodable
from medseg_attack.data.formats.dicom.reading import group, numbers, reading
from medseg_attack.data.formats.dicom.series import Grid
from medseg_attack.data.formats.scan import Array
from medseg_attack.errors import InputError, plural


def read_seg(path: Path, grid: Grid, segments: Iterable[int], threshold: float) -> dict[int, Array]:
    """Per segment number a mask of the grid's shape; a slice without a frame is empty.

    Args:
        threshold: of FRACTIONAL segments, as a fraction of their maximum; such values and more are inside.

    Raises:
        InputError: the file is broken, or a frame is not on voxels of the grid.
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
        numbers_in_frame = wanted if kind == "LABELMAP" else {_segment(dataset, n)} & wanted
        if not numbers_in_frame:
            continue
        place = _on(dataset, n, frame.shape, grid, path)
        for number in numbers_in_frame:
            where, part, beyond = place.put(_inside(frame, kind, number, dataset, threshold)[None])
            if beyond:
                raise InputError(
                    f"expected segments within the series, got {plural(beyond, 'pixel')} of frame {n} beyond its "
                    f"{plural(grid.shape[0], 'slice')} in {path}; add the slices that are missing, or leave it out"
                )
            masks[number][where] |= part
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


def _on(dataset: Any, n: int, shape: tuple[int, ...], grid: Grid, path: Path) -> Alignment:
    """The alignment of a frame's pixels: in a slice of the grid, or across its slices."""
    position = numbers(group(dataset, n, "PlanePositionSequence"), "ImagePositionPatient")
    turn = numbers(group(dataset, n, "PlaneOrientationSequence"), "ImageOrientationPatient")
    spacing = numbers(group(dataset, n, "PixelMeasuresSequence"), "PixelSpacing")
    if position is None or turn is None or spacing is None:
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
