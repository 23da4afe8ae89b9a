"""UW-Madison GI tract segmentation (Kaggle 2022): abdominal MRI, 16-bit PNG slices and a csv of run lengths.

    SOURCE/train.csv                                                        id,class,segmentation
    SOURCE/train/case2/case2_day1/scans/slice_0001_266_234_1.50_1.50.png    slice, width, height, mm, mm

Names give width before height; the shape is taken from the PNG. Slices are 3 mm apart. Organs may overlap.
"""

import codecs
import csv
import functools
import io
import os
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from medseg_attack.data.cohort.missing import require_rule, without
from medseg_attack.data.cohort.patients import Named, patients
from medseg_attack.data.datasets.source import ScanFile, Source, require_folder
from medseg_attack.data.formats import rle
from medseg_attack.data.formats.folders import matching
from medseg_attack.data.formats.leaving_out import is_left_out, offering
from medseg_attack.data.formats.png16 import read_png16
from medseg_attack.data.formats.scan import Array, Lattice, Scan
from medseg_attack.errors import InputError, nearest, plural, reason
from medseg_attack.registry import register, spec
from medseg_attack.storage.paths import require_file
from medseg_attack.types import Task

TASK = Task("uw_madison", ("large_bowel", "small_bowel", "stomach"))
COLUMNS = ("id", "class", "segmentation")
SLICE_DISTANCE_MM = 3.0
PAPER = ("case7_day0", "case81_day30")  # left out by arXiv 2401.11224, section 4

AUTHOR = (  # named by the data set's author as badly annotated
    *PAPER,
    "case61_day14",
    "case9_day27",
    "case43_day18",
    "case138_day0",
    "case34_day20",
    "case43_day26",
    "case124_day19",
    "case144_day15",
    "case83_day11",
    "case13_day0",
)

DROPPED = {"paper": PAPER, "author": AUTHOR, "none": ()}
_NAME = re.compile(r"slice_(\d+)_\d+_\d+_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?)\.(?i:png)")


@register("uw_madison", kind="dataset")
@dataclass(frozen=True)
class UWMadison:
    """UW-Madison GI tract MRI: three organs that may overlap, 16-bit PNG and run lengths.

    Every slice needs its three rows in train.csv (an organ that is absent has an empty one), since a row
    that was lost is not an organ that is absent; only a scan without any row counts as unlabelled and is
    left out.

    Attributes:
        drop: scans left out as badly annotated: "paper" (two), "author" (twelve) or "none".
        patient: pattern of the patients' names, or "folder"; see `cohort.patients`.
        missing: what is done about a slice without a row of an organ: "refuse", "absent" or "drop" its scan.

    Raises:
        InputError: there is no such list, or no such rule for missing classes.
    """

    drop: str = "paper"
    patient: str = ""
    missing: str = "refuse"

    def __post_init__(self) -> None:
        if self.drop not in DROPPED:
            raise InputError(
                f"uw_madison.drop: expected a list's name, got {self.drop!r}; {nearest(self.drop, DROPPED)}"
            )
        require_rule(self.missing)

    def listing(self, root: Path) -> Source:
        """The scans of the competition's tree; reads the csv and the names of the files."""
        require_folder(root, "train.csv and train/ of UW-Madison")
        table = read_table(root / "train.csv")
        slices = _slices(root)
        _check_ids(table, slices)
        folders = {scan: next(iter(files.values())).parent.parent for scan, files in slices.items()}
        named = {scan: Named(scan, folder, scan.partition("_")[0]) for scan, folder in folders.items()}
        who = patients(named, self.patient, root / "train", "by the first word of their scans' names")
        notes, scans = list(who.warnings), []
        for scan, files in slices.items():
            if scan in DROPPED[self.drop]:
                notes.append(f"{scan} is left out as badly annotated (drop={self.drop!r})")
                continue
            if not any(case in table.places for case in files):
                notes.append(f"{scan} is left out: it has no row in {table.path}")
                continue
            if self.missing == "refuse":
                with offering(scan):
                    _check_complete(table, files)
            organs = {case: table.classes(case) for case in files}
            lacking = without(
                {case: set(TASK.classes).difference(organs[case]) for case in files}, self.missing, organs
            )
            if lacking.dropped:
                notes.append(f"{scan} is left out: {plural(len(lacking.dropped), 'slice')} lack rows in {table.path}")
            else:
                notes += [f"{scan}: {note}" for note in lacking.notes]
                scans.append(_scan_file(scan, who.groups[scan], files, table))
        if not scans:
            raise InputError(f"expected labelled scans in {root}, got none; take the {table.path.name} of these scans")
        return Source(root, spec(self), TASK, tuple(scans), tuple(notes), patient_rule=who.rule)


@dataclass(frozen=True)
class RunTable:
    """The csv of run lengths, of which the places of rows are in memory, and no runs.

    Attributes:
        header: its columns.
        state: its size in bytes and the time of its last change, as the rows were found.
        places: start and length in bytes of the row of each class, by slice id; 0 and 0 where there is none.
    """

    path: Path
    header: tuple[str, ...]
    state: tuple[int, int]
    places: Mapping[str, Sequence[int]]

    def classes(self, case: str) -> list[str]:
        """The classes that a slice has rows of."""
        lengths = self.places.get(case, ())[1::2]
        return [name for name, length in zip(TASK.classes, lengths, strict=False) if length]

    def of(self, cases: Iterable[str]) -> "RunTable":
        """The table of some of the slices."""
        return replace(self, places={case: self.places[case] for case in cases if case in self.places})

    def runs(self) -> dict[str, dict[str, str]]:
        """The runs of each slice and class.

        Raises:
            InputError: the file was changed since its rows were found.
        """
        result: dict[str, dict[str, str]] = {}
        try:
            with self.path.open("rb") as file:
                if _state(file) != self.state:  # a row that is longer now would be cut, and its runs with it
                    raise InputError(
                        f"expected {self.path} as it was when its rows were found, got one that was changed since; "
                        "prepare again, and leave the file as it is meanwhile"
                    )
                for case, places in self.places.items():
                    result[case] = {}
                    for name, start, length in zip(TASK.classes, places[::2], places[1::2], strict=True):
                        if length:
                            file.seek(start)
                            result[case][name] = self._runs(file.read(length), case, name)
        except OSError as error:
            raise InputError(f"expected a csv file at {self.path}, got '{reason(error)}'; copy it again") from error
        return result

    def _runs(self, content: bytes, case: str, name: str) -> str:
        try:
            row = next(csv.DictReader(io.StringIO(content.decode("utf-8"), newline=""), self.header), {})
        except (UnicodeDecodeError, csv.Error):
            row = {}
        if (row.get("id"), row.get("class")) != (case, name):
            raise InputError(
                f"expected the row for {name} of {case} where it was in {self.path}, got another; prepare again, and "
                "leave the file as it is meanwhile"
            )
        return row["segmentation"] or ""


def read_table(table: Path) -> RunTable:
    """The places of the rows of a csv.

    Raises:
        InputError: it is missing, lacks a column, names another class, or has two rows for one class of a
            slice.
    """
    places: dict[str, array[int]] = {}
    try:
        with require_file(table, "a csv file").open("rb") as file:
            state = _state(file)
            lines = _Lines(file)
            reader = csv.DictReader(lines)
            header = tuple(reader.fieldnames or ())
            missing = [column for column in COLUMNS if column not in header]
            if missing:
                columns = ", ".join(header) or "none"
                raise InputError(
                    f"expected the columns {', '.join(COLUMNS)} in {table}, got {columns}; add {missing[0]}"
                )
            start = lines.position
            for row in reader:
                _add(places, row["id"] or "", row["class"] or "", start, lines.position, table)
                start = lines.position
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a csv file at {table}, got '{reason(error)}'; copy it again") from error
    return RunTable(table, header, state, places)


def _state(file: BinaryIO) -> tuple[int, int]:
    state = os.fstat(file.fileno())
    return state.st_size, state.st_mtime_ns


class _Lines(Iterator[str]):
    """The lines of a UTF-8 file, read one at a time.

    Attributes:
        position: in the file, behind the last line that was read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.position = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
        file.seek(self.position)
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="")

    def __next__(self) -> str:
        line = self._text.readline()
        if not line:
            raise StopIteration
        self.position += len(line) if line.isascii() else len(line.encode())
        return line


def _add(places: dict[str, "array[int]"], case: str, name: str, start: int, end: int, table: Path) -> None:
    if is_left_out(scan := case.rpartition("_slice_")[0]):
        return
    with offering(scan):
        _add_place(places, case, name, start, end, table)


def _add_place(places: dict[str, "array[int]"], case: str, name: str, start: int, end: int, table: Path) -> None:
    if name not in TASK.classes:
        guess = nearest(name, TASK.classes)
        raise InputError(f"expected an organ as class of {case} in {table}, got {name!r}; {guess}")
    k, own = TASK.classes.index(name), places.setdefault(case, array("q", [0, 0] * len(TASK.classes)))
    if own[2 * k + 1]:
        raise InputError(f"expected one row for {name} of {case} in {table}, got two; delete one")
    own[2 * k], own[2 * k + 1] = start, end - start


def _slices(root: Path) -> dict[str, dict[str, Path]]:
    """Scan -> slice id -> file, all three in order."""
    slices: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in matching(root, "train/case*/case*_day*/scans/*"):
        if path.name.startswith("."):  # what desktops leave behind
            continue
        if is_left_out(scan := path.parent.parent.name):
            continue
        with offering(scan):
            _add_slice(slices[scan], path, scan)
    if not slices:
        raise InputError(
            f"expected slices like train/case2/case2_day1/scans/slice_0001_266_234_1.50_1.50.png in {root}, "
            "got none; give the folder that holds train.csv and train/"
        )
    return {scan: dict(sorted(slices[scan].items())) for scan in sorted(slices)}


def _add_slice(files: dict[str, Path], path: Path, scan: str) -> None:
    name = _NAME.fullmatch(path.name)
    if name is None:
        raise InputError(f"expected names like slice_0001_266_234_1.50_1.50.png, got {path}; rename it or take it away")
    case = f"{scan}_slice_{name[1]}"
    if case in files:
        raise InputError(f"expected one file for {case}, got {files[case]} and {path}; take one away")
    other = next(iter(files.values()), path)
    if other.parent != path.parent:
        raise InputError(f"expected one folder for {scan}, got {other.parent} and {path.parent}; take one away")
    files[case] = path


def _check_ids(table: RunTable, slices: Mapping[str, Mapping[str, Path]]) -> None:
    cases = {case for files in slices.values() for case in files}
    lost = sorted(table.places.keys() - cases)
    if lost:
        with offering(lost[0].rpartition("_slice_")[0]):
            raise InputError(
                f"expected a file for each id of {table.path}, got none for {lost[0]!r} ({len(lost)} such); "
                "restore the files or delete the rows"
            )


def _check_complete(table: RunTable, files: Mapping[str, Path]) -> None:
    for case, path in files.items():
        got = table.classes(case)
        if len(got) < len(TASK.classes):
            raise InputError(
                f"expected a row for each of {', '.join(TASK.classes)} for {path} in {table.path}, "
                f"got {', '.join(got) or 'none'}; add the missing rows, with no runs where an organ is absent, or "
                "give --missing absent or --missing drop"
            )


def _scan_file(scan: str, group: str, files: Mapping[str, Path], table: RunTable) -> ScanFile:
    paths = tuple(files.values())
    read = functools.partial(_read, files, table.of(files))
    return ScanFile(scan, group, paths[0].parent, (*paths, table.path), read, len(paths))


def _read(files: Mapping[str, Path], table: RunTable) -> Scan:
    images = [read_png16(path) for path in files.values()]
    _check_same("shape", [image.shape for image in images], list(files.values()))
    spacing = [_spacing_mm(path) for path in files.values()]
    _check_same("spacing", spacing, list(files.values()))
    stored = np.stack(images)
    runs = table.runs()
    labels = np.stack([_labels(case, runs.get(case, {}), images[0].shape, table.path) for case in files])
    return Scan(stored, labels, tuple(files), spacing[0], lattice=Lattice(stored.shape))


def _labels(case: str, runs: Mapping[str, str], shape: tuple[int, int], table: Path) -> Array:
    labels = np.zeros(shape, dtype=np.uint8)
    for k, name in enumerate(TASK.classes):
        try:
            labels |= rle.decode(runs.get(name, ""), shape).astype(np.uint8) << k
        except InputError as error:
            raise InputError(f"{name} of {case} in {table}: {error}") from error
    return labels


def _spacing_mm(path: Path) -> tuple[float, float, float]:
    name = _NAME.fullmatch(path.name)
    assert name is not None  # `_slices` has seen to it
    return SLICE_DISTANCE_MM, float(name[3]), float(name[2])


def _check_same(what: str, values: Sequence[object], paths: Sequence[Path]) -> None:
    for value, path in zip(values, paths, strict=True):
        if value != values[0]:
            raise InputError(
                f"expected slices of one {what} in {path.parent}, got {values[0]} in {paths[0].name} and {value} "
                f"in {path.name}; leave the slices of other scans out"
            )
