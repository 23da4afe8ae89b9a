"""DICOM files through pydicom, which goes on with half a file where this one refuses."""

import io
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medseg_attack.data.formats.memory import inflated
from medseg_attack.errors import InputError, reason, refusing
from medseg_attack.storage.paths import require_file

_META = 144  # bytes before the file meta elements whose length is counted


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Without pydicom's warnings, since real files break the standard in many ways that do not matter here.

    Raises:
        InputError: in place of what pydicom raises on a file that is cut off or broken.
    """
    require_file(path, "a DICOM file")
    whole = f"a whole DICOM file in {path}"
    with (
        refusing(whole, "copy it again", words=_without_values, passing=(InputError, MemoryError)),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _without_values(error: BaseException) -> str:
    """An error of pydicom's, or of what decodes for it, in words; headers of patients are in no message."""
    text = reason(error)
    return text if isinstance(error, OSError | EOFError) else re.sub(r"""(['"]).*\1""", "a value", text)


class _Whole(io.BufferedReader):
    """A file that raises where it ends within an element: pydicom would go on with half of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        # an element begins with 8 bytes, and where none of them is left the file has ended as it should
        if size is not None and len(content) < size and (content or size != 8):
            raise OSError(f"it ends after {self._size} bytes, within an element")
        return content

    def seek(self, target: int, whence: int = 0, /) -> int:
        place = super().seek(target, whence)
        if place > self._size:
            raise OSError(f"it ends after {self._size} bytes, {place - self._size} too early")
        return place


def read_whole(path: Path, tags: Sequence[str] = ()) -> Dataset:
    """All elements but the pixels of a file, or those named by `tags`, whose values are then read at once.

    Raises:
        OSError: it is cut off.
    """
    _require_inflated(path)
    with _Whole(path) as file:
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags) or None)
    if tags:  # a value that cannot be read is refused with its file, and not where somebody asks for it
        for element in (*dataset.file_meta, *dataset.iterall()):
            del element
    return dataset


def _require_inflated(path: Path) -> None:
    """Refuses a deflated data set that would take more memory than is allowed: pydicom inflates it in one go."""
    with path.open("rb") as file:
        head = file.read(4096)
        if DeflatedExplicitVRLittleEndian.encode() not in head:
            return
        meta = pydicom.filereader.read_file_meta_info(path)
        file.seek(_META + int(meta.FileMetaInformationGroupLength))
        try:
            inflated(file.read(), path)
        except zlib.error as error:
            raise OSError(f"its deflated data set is broken: {error}") from error


def is_dicom(path: Path) -> bool:
    """Whether the file begins as DICOM files do, whatever its name is."""
    with require_file(path).open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def group(dataset: Dataset, frame: int, name: str) -> Dataset:
    """A functional group of a frame: its own, or the one that all frames share; empty if there is none."""
    for sequence, at in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = dataset.get(sequence) or []
        if at < len(groups) and groups[at].get(name):
            item: Dataset = groups[at][name].value[0]
            return item
    return Dataset()


def numbers(dataset: Dataset, name: str) -> tuple[float, ...] | None:
    """The values of an attribute as numbers, None if it is absent or empty."""
    value = dataset.get(name)
    return None if value is None or len(value) == 0 else tuple(float(one) for one in value)


def number(dataset: Dataset, name: str, default: float) -> float:
    """The value of an attribute, or `default` if it is absent or empty."""
    value = dataset.get(name)
    return default if value is None or value == "" else float(value)
