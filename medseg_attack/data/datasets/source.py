"""The protocol of readers: a cheap listing of scans, each of which can then be read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from pydantic import TypeAdapter, ValidationError

from medseg_attack import registry
from medseg_attack.data.cohort.doubles import unique
from medseg_attack.data.formats.folders import listed
from medseg_attack.data.formats.leaving_out import FLAG, is_left_out, left_out_notes, refuse_unknown
from medseg_attack.data.formats.scan import Scan
from medseg_attack.errors import InputError
from medseg_attack.escaping import whole_characters
from medseg_attack.registry.foreign import at_fault, words_of
from medseg_attack.storage.paths import is_id
from medseg_attack.types import NO_CLASS, Phase, Task

T = TypeVar("T")

FOLDER = "folder"  # the split of a data set's own folders
UNLABELLED = "unlabelled"  # the format of scans without masks
MOST_OVERLAPPING = 32  # classes that share a voxel's bits


@dataclass(frozen=True)
class ScanFile:
    """A scan that was found but not read yet.

    Attributes:
        group: the patient.
        path: what an error about its pixels names: the image, or the folder of its slices.
        sources: all files it is read from, those of the image first.
        n_images: how many of them are of the image: one, one per slice, or one per channel.
        part: where the data set itself has put it: "train", "val" or "test"; "" if nowhere.
        phase: of the heart, where the data set says it.
    """

    id: str
    group: str
    path: Path
    sources: tuple[Path, ...]
    read: Callable[[], Scan]
    n_images: int = 1
    part: str = ""
    phase: Phase = ""


@dataclass(frozen=True)
class Source:
    """A data set as it was found.

    Attributes:
        format: the spec of its reader.
        scans: sorted by id.
        notes: what was left out and why, a sentence each.
        window: what its intensities are best shown by, as `windows.window_rule` reads it.
        threshold: of masks, if one was asked for; from there on a pixel belongs to the class.
        plane: that of the slices, where the reader chooses it for all scans; "" where files hold slices.
        patient_rule: how patients were told apart, as in "by their PatientID".
    """

    root: Path
    format: str
    task: Task
    scans: tuple[ScanFile, ...]
    notes: tuple[str, ...] = ()
    window: str = "percentile"
    threshold: float = 0.0
    plane: str = ""
    patient_rule: str = field(kw_only=True)


@runtime_checkable
class Reader(Protocol):
    """A format: a frozen dataclass whose fields are its options."""

    def listing(self, root: Path) -> Source:
        """The data set at `root`, without reading pixels.

        Raises:
            InputError: `root` is not of this format.
        """
        ...


def open_source(format_spec: str, root: Path, options: Mapping[str, Any] | None = None) -> Source:
    """Lists the data set at `root`, for instance `open_source("uw_madison(drop='none')", root)`.

    Args:
        options: values for fields that the spec leaves open; empty ones are not set.

    Raises:
        InputError: the format is not known, has not such an option, or `root` is not of it.
    """
    chosen = {name: value for name, value in (options or {}).items() if value}
    name, arguments = registry.parse_call(format_spec, "dataset")
    for option in chosen:
        if not registry.find(name).takes(option) or option in arguments:
            flag = option.replace("_", "-")
            got = "it is in --format, too" if option in arguments else "it has no such option"
            raise InputError(f"--{flag}: expected an option of {format_spec}, got that {got}; drop --{flag}")
    reader: Reader = replace(registry.build(format_spec, "dataset"), **chosen)
    source = _typed(reader.listing(root), Source, reader, f"the listing of {root}")
    if registry.parse_call(source.format, "dataset")[0] != name:
        raise at_fault(
            reader, f"expected the listing of {root} to say the format {name}, got {source.format!r}; write it"
        )
    source = replace(source, scans=tuple(_scan_file(scan, reader, source.root) for scan in source.scans))
    task = _typed(source.task, Task, reader, f"the listing of {root}")
    if not all(task.classes) or len(task.classes) < 1 + task.exclusive or task.channels < 1:
        raise at_fault(
            reader, f"expected classes with names and channels in the listing of {root}, got {task}; repair the reader"
        )
    if task.exclusive and task.classes[0] != "background":
        raise at_fault(
            reader,
            f"expected 'background' as the first of classes that exclude each other in the listing of {root}, got "
            f"{task.classes[0]!r}; put it there, or write exclusive=False",
        )
    source = replace(source, task=task)
    scans = (replace(scan, id=whole_characters(scan.id), group=whole_characters(scan.group)) for scan in source.scans)
    kept = tuple(scan for scan in scans if not is_left_out(scan.id))
    if not kept and source.scans:
        raise InputError(f"{FLAG}: expected a scan of {root} that is not left out, got none; name fewer")
    refuse_unknown()
    notes = map(whole_characters, left_out_notes())
    source = replace(source, scans=kept, notes=(*source.notes, *notes))
    unique(((scan.id, scan.path) for scan in source.scans), "scan")
    _check_classes(source)
    return source


def _scan_file(scan: Any, reader: Reader, root: Path) -> ScanFile:
    """A scan of a listing, if it can stand in a prepared data set."""
    file = _typed(scan, ScanFile, reader, f"the listing of {root}")
    outside = [path for path in file.sources if not path.is_relative_to(root)]
    wrong = {
        "an id that can be the name of a file": () if is_id(whole_characters(file.id)) else (file.id,),
        "the name of a patient as group": () if file.group else (file.group,),
        f"sources below {root}": outside[:1],
        "train, val, test or '' as part": () if file.part in ("train", "val", "test", "") else (file.part,),
        "n_images of 1 or more, among its sources": (
            () if not file.sources or 0 < file.n_images <= len(file.sources) else (file.n_images,)
        ),
    }
    for expected, got in wrong.items():
        if got:
            raise at_fault(
                reader, f"expected {expected} for the scan {file.path}, got {str(got[0])!r}; repair the reader"
            )
    return file


def _typed(value: Any, kind: type[T], reader: Reader, what: str) -> T:
    """The value, an instance of a dataclass whose fields are of their types.

    Raises:
        RuntimeError: it is not; an InputError, if the reader is of somebody else's.
    """
    if not isinstance(value, kind):
        raise at_fault(reader, f"expected a {kind.__name__} in {what}, got {words_of(value)}; repair the reader")
    try:
        return cast(T, _adapter(kind).validate_python(vars(value)))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise at_fault(
            reader,
            f"expected the field {field!r} of each {kind.__name__} in {what} to be as documented "
            f"({first['msg'].lower()}), got {first['input']!r:.60}; repair the reader",
        ) from error


_adapter: Any = cache(TypeAdapter)


def _check_classes(source: Source) -> None:
    """Refuses classes that later steps could not tell apart or hold."""
    names = source.task.classes
    unique(((name, repr(name)) for name in names), "class")
    broken = [name for name in names if name != whole_characters(name)]
    if broken:
        raise InputError(
            f"expected names of classes in UTF-8, got {whole_characters(broken[0])} in {source.root}; name that class "
            "with --labels"
        )
    if NO_CLASS in names:
        raise InputError(
            f"expected names of classes other than {NO_CLASS!r}, as tables call the average over them, got it in "
            f"{source.root}; name that class with --labels"
        )
    if not source.task.exclusive and len(names) > MOST_OVERLAPPING:
        raise InputError(
            f"expected at most {MOST_OVERLAPPING} classes that may overlap, got {len(names)} in {source.root}; choose "
            "among them with --labels CLASS=NAME, or for DICOM take one class per voxel with dicom(exclusive=True)"
        )


def require_folder(root: Path, what: str) -> Path:
    """`root`, if it is a folder with something in it.

    Raises:
        InputError: it is not.
    """
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise InputError(f"expected {what} in the folder {root}, got {got}; give the folder that holds it")
    if not listed(root):
        raise InputError(f"expected {what} in the folder {root}, got an empty folder; give the one that holds it")
    return root


def require_split(split_by: str) -> None:
    """Refuses a split that no reader knows.

    Raises:
        InputError: it is neither "folder" nor "".
    """
    if split_by not in ("", FOLDER):
        raise InputError(f"split_by: expected 'folder' or none, got {split_by!r}; give a file as --split-by FILE.json")


def label_type(task: Task) -> np.dtype[Any]:
    """The smallest unsigned type that holds a voxel's labels."""
    n = len(task.classes)
    return np.min_scalar_type(n - 1 if task.exclusive else 2**n - 1)
