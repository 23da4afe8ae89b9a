"""The record of each scan of a prepared data set: all that is known of it beside the two arrays."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from medseg_attack.data.formats.scan import Array, Lattice
from medseg_attack.errors import InputError, refusing
from medseg_attack.storage.json_files import digest, read_json
from medseg_attack.storage.paths import inside, is_below, is_id, require_file
from medseg_attack.types import Phase, Task

Number: TypeAlias = int | float  # whole numbers stay whole in the file
Numbers: TypeAlias = Number | tuple[Number, ...]  # one for every channel, or one for each
_NUMBERS = {"images": "iuf", "labels": "iu"}  # NumPy's kinds of what the arrays may hold
_WORDS = {"iuf": "numbers of up to 64 bits", "iu": "whole numbers"}


def _require_below(path: str) -> str:
    if not is_below(path):
        raise ValueError("a path that leads out of its folder")
    return path


def _require_id(name: str) -> str:
    if not is_id(name):
        raise ValueError("an id that is no name of a file")
    return name


Below: TypeAlias = Annotated[str, AfterValidator(_require_below)]  # a path below the source
Id: TypeAlias = Annotated[str, AfterValidator(_require_id)]


# with slots, since a data set has a record for every picture: it takes a third of a pydantic model's memory


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that a scan was read from, relative to the source, and its state then."""

    path: Below
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class ClassPixels:
    """Labelled slices and voxels of a class."""

    slices: int
    voxels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRecord:
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
        notes: what was decided while it was read, a phrase about the scan each.
        n_images: how many of them are of the image; None in records of the first version.
        intensity: least and largest of the scan, in its unit.
        classes: by name, of those that are scored.
        phase: of the heart, where the data set says it.
    """

    key: str
    digest: str
    id: Id
    group: str
    case_ids: tuple[Id, ...]
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
    frames: tuple[tuple[Below, int], ...] = ()
    notes: tuple[str, ...] = ()
    unit: str
    windows: tuple[tuple[Numbers, Numbers], ...]
    affine: tuple[tuple[Number, ...], ...] | None
    lattice: Lattice | None
    sources: tuple[SourceFile, ...]
    n_images: int | None = None
    intensity: tuple[Number, Number]
    classes: dict[str, ClassPixels]
    phase: Phase = ""

    def to_json(self) -> dict[str, Any]:
        """The record as its file holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], file: Path) -> "ScanRecord":
        """The inverse of `to_json`.

        Raises:
            InputError: a field of `file` is absent, or not of its type.
        """
        try:
            return _FORM.validate_python(fields)
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

    def content_digest(self, stored: Array, labels: Array) -> str:
        """A digest of pixels, labels, geometry, names and windows: not of paths, times, or the file's compression.

        Args:
            stored: the array in images/.
            labels: the array in labels/.
        """
        slope = 1.0 if self.slope is None else self.slope
        inter = 0.0 if self.inter is None else self.inter
        described = {
            "id": self.id,
            "group": self.group,
            "case_ids": self.case_ids,
            "shape": stored.shape,
            "types": [portable(stored).dtype.str, portable(labels).dtype.str],
            "spacing_mm": self.spacing_mm,
            "scale": [slope, inter, self.unit, *self.scales],
            "affine": self.affine,
            "windows": self.windows,
            **({} if self.padding is None else {"padding": self.padding}),
        }
        total = hashlib.sha256(digest(described).encode())
        total.update(portable(stored).data)
        total.update(portable(labels).data)
        return total.hexdigest()


_FORM = TypeAdapter(ScanRecord)


def portable(array: Array) -> NDArray[Any]:
    """The array as it is written, the same on every machine: little-endian, row by row."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def read_record(root: Path, scan: str, task: Task) -> ScanRecord:
    """The record of a scan of the prepared data set at `root`.

    Args:
        task: whose scored classes the record must have.

    Raises:
        InputError: there is none, or it was changed.
    """
    file = inside(root, f"scans/{scan}.json")
    record = ScanRecord.from_json(read_json(file), file)
    if record.id != scan:
        raise InputError(f"expected the scan {scan} in {file}, got {record.id}; delete that file and prepare again")
    if lost := [task.classes[k] for k in task.scored if task.classes[k] not in record.classes]:
        raise InputError(
            f"expected {lost[0]!r} in the field 'classes' in {file}, got none; "
            "delete that file and prepare the data again"
        )
    return record


def damage(root: Path, record: ScanRecord) -> str:
    """The files of a scan whose content is another than `prepare` wrote; "" if there are none.

    Its two arrays and its record have one digest, so that it does not say which of them was changed.
    """
    try:
        stored, labels = arrays(root, record)
    except InputError as error:
        return str(error)
    if record.content_digest(stored, labels) == record.digest:
        return ""
    places = " and ".join(str(_place(root, kind, record)) for kind in record.array_shapes)
    return (
        f"expected the pixels, labels and geometry that were prepared in {places}, got "
        "others; run 'medattack prepare' again, which writes them anew"
    )


def arrays(root: Path, record: ScanRecord) -> tuple[Array, Array]:
    """The stored values and the labels of a scan, as memory maps.

    Raises:
        InputError: one is missing, was cut off, or is not an array of the record's shape that holds numbers.
    """
    stored, labels = (
        _mapped(_place(root, kind, record), shape, _NUMBERS[kind]) for kind, shape in record.array_shapes.items()
    )
    return stored, labels


def _place(root: Path, kind: str, record: ScanRecord) -> Path:
    return root / kind / f"{record.id}.npy"


def _mapped(path: Path, shape: tuple[int, ...], numbers: str) -> Array:
    require_file(path, "an array")
    with refusing(f"an array in {path}", "run medattack prepare again"):  # NumPy parses the header as Python
        # copy-on-write, since a tensor must not be read-only: what is written to it never reaches the disk
        array: Array = np.load(path, mmap_mode="c", allow_pickle=False)
    if array.shape != shape:
        raise InputError(f"expected an array of shape {shape} in {path}, got {array.shape}; prepare the data again")
    if array.dtype.kind not in numbers or array.dtype.itemsize > 8 or not array.dtype.isnative:
        raise InputError(f"expected {_WORDS[numbers]} in {path}, got {array.dtype}; prepare the data again")
    return array
