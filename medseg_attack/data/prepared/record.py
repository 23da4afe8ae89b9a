"""The record of each scan of a prepared data set: all that is known of it beside the two arrays."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from medseg_attack.data.formats.scan import Array, Lattice
from medseg_attack.errors import InputError
from medseg_attack.files import read_json

Number: TypeAlias = int | float  # whole numbers stay whole in the file
Numbers: TypeAlias = Number | tuple[Number, ...]  # one for every channel, or one for each


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class SourceFile(_Frozen):
    """A file that a scan was read from, relative to the source, and its state then."""

    path: str
    size: int
    mtime_ns: int


class ClassPixels(_Frozen):
    """Labelled slices and voxels of a class."""

    slices: int
    voxels: int


class ScanRecord(_Frozen):
    """One scan of a prepared data set; lengths and stored values are those of `data.formats.scan.Scan`.

    Attributes:
        key: changes if what would be written for this scan may have changed.
        digest: of pixels, labels, geometry, names and windows.
        id: of the scan.
        group: its patient.
        case_ids: of its slices.
        shape: slices, rows and columns of the two arrays.
        shape_before: those of the source, before it was resampled.
        stored_type: of the stored values.
        slope, inter: of all slices; None where `scales` has those of each.
        windows: low and high of each slice.
        affine: voxel of the file's array to mm, 4 x 4, if the file has one.
        lattice: the way back to the file's array; None where there is none.
        sources: all files that it was read from, those of the image first.
        n_images: how many of them are of the image; None in records of the first version.
        intensity: least and largest of the scan, in its unit.
        classes: by name, of those that are scored.
    """

    key: str
    digest: str
    id: str
    group: str
    case_ids: tuple[str, ...]
    shape: tuple[int, int, int]
    shape_before: tuple[int, int, int]
    channels: int = 1
    spacing_mm: tuple[Number, Number, Number]
    stored_type: str
    slope: Numbers | None
    inter: Numbers | None
    scales: tuple[tuple[Number, Number], ...] = ()
    limits: tuple[int, int] | None = None
    padding: tuple[int, int] | None = None
    frames: tuple[tuple[str, int], ...] = ()
    unit: str
    windows: tuple[tuple[Numbers, Numbers], ...]
    affine: tuple[tuple[Number, ...], ...] | None
    lattice: Lattice | None
    sources: tuple[SourceFile, ...]
    n_images: int | None = None
    intensity: tuple[Number, Number]
    classes: dict[str, ClassPixels]

    def to_json(self) -> dict[str, Any]:
        """The record as its file holds it."""
        return self.model_dump()

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], file: Path) -> "ScanRecord":
        """The inverse of `to_json`.

        Raises:
            InputError: a field of `file` is absent, or not of its type.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            field = str(error.errors()[0]["loc"][0])
            got = f"{fields[field]!r:.60}" if field in fields else "none"
            raise InputError(
                f"expected the field {field!r} in {file} as 'medattack prepare' writes it, got {got}; "
                "delete that file and prepare the data again"
            ) from error

    @property
    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the scan's two arrays, by their folder."""
        return {"images": self.shape if self.channels == 1 else (self.channels, *self.shape), "labels": self.shape}


def read_record(root: Path, scan: str) -> ScanRecord:
    """The record of a scan of the prepared data set at `root`.

    Raises:
        InputError: there is none, or it was changed.
    """
    file = root / "scans" / f"{scan}.json"
    return ScanRecord.from_json(read_json(file), file)


def mapped(path: Path, shape: tuple[int, ...]) -> Array:
    """The array of that shape, as a memory map.

    Raises:
        InputError: it is missing, was cut off, or is not an array of that shape.
    """
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"expected an array in {path}, got {error}; run medattack prepare again") from error
    if array.shape != shape:
        raise InputError(f"expected an array of shape {shape} in {path}, got {array.shape}; prepare the data again")
    return array
