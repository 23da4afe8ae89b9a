"""Writes a prepared data set: scan after scan, so that it can be killed and started again.

DATA/options.json         what was asked for; written first, and never changed
DATA/images/<scan>.npy    (slices, rows, columns), with several channels (channels, slices, rows, columns), as stored
DATA/labels/<scan>.npy    (slices, rows, columns): class index, or bit k for class k
DATA/scans/<scan>.json    geometry, windows, counts, pointers to the sources; written after the two arrays
DATA/dataset.json         task, splits, fingerprint, summary; written last, so that it stands for the whole
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from medseg_attack.data.cohort.notes import notes_on_scans
from medseg_attack.data.datasets.source import UNLABELLED, ScanFile, Source
from medseg_attack.data.formats.leaving_out import offering
from medseg_attack.data.formats.memory import limit_gb, memory_limit
from medseg_attack.data.prepared.record import ScanRecord, read_record
from medseg_attack.data.prepared.scan_writing import is_written, read_scan, source_files, write_arrays
from medseg_attack.data.prepared.splits import split, split_of_file
from medseg_attack.data.prepared.summary import summary
from medseg_attack.data.prepared.windows import Percentile, WindowRule
from medseg_attack.errors import FULL, InputError
from medseg_attack.registry.foreign import foreign_errors_named
from medseg_attack.storage.files import errno_of, file_hash, is_part
from medseg_attack.storage.json_files import digest, read_json, require_same_options, write_json
from medseg_attack.storage.locks import LOCK, locked
from medseg_attack.storage.paths import inside, real_path, require_outside
from medseg_attack.storage.workers import results
from medseg_attack.types import Task

_TOP = r"(?:options|dataset)\.json"
_FOLDERS = (("images", ".npy"), ("labels", ".npy"), ("scans", ".json"))
PATIENCE = 2.0  # seconds that one process works alone: so many take others to start
VERSION = 3  # of what is written for the same input; raise it with every change of that


@dataclass(frozen=True)
class Options:
    """How to prepare.

    Attributes:
        size: rows, columns to resample to; None keeps each scan's own grid.
        test_fraction: of the patients, at least one.
        seed: of the split by patient.
        split_file: JSON that names the cases of each part; see `splits.split_of_file`. It replaces the three before.
    """

    size: tuple[int, int] | None = None
    window: WindowRule = Percentile()  # noqa: RUF009 - a frozen value
    folds: int = 5
    test_fraction: float = 0.2
    seed: int = 0
    split_file: Path | None = None


@dataclass(frozen=True)
class PreparedScan:
    """One scan that is now in the prepared data set; `reused` if it was there before."""

    scan: str
    reused: bool


def prepare(source: Source, out: Path, options: Options = Options(), jobs: int = 1) -> Iterator[PreparedScan]:
    """Writes `source` to `out`, and yields after each scan.

    Scans that are there already, from the same files (by size and time of change) and options, are reused;
    what is written is the same as that of an undisturbed run. After an error, what this call wrote into a new or
    empty `out` is removed, and a finished data set whose scans are unchanged is what it was; after an interruption or
    with a full disk it stays. Of two processes that write to `out`, one waits for the other.

    Args:
        jobs: number of processes that decode and write scans once this takes longer than `PATIENCE`; what is written,
            the order and the errors are those of one.

    Raises:
        InputError: bad input, other options than those `out` was begun with, or a full disk.
    """
    splits = _split(source, options)
    require_outside(out, source.root)
    with begun(out, _asked(source, options)):
        yield from _written(source, out, options, jobs)
        _finish(source, out, splits)


def _written(source: Source, out: Path, options: Options, jobs: int) -> Iterator[PreparedScan]:
    """Writes scan after scan: the first in this process, and the rest in `jobs` of them if it is to take longer."""
    work = partial(_write, replace(source, scans=()), out, options, limit_gb())
    start = monotonic()
    for number, scan in enumerate(source.scans):
        if jobs > 1 and monotonic() - start >= PATIENCE:
            yield from results(work, source.scans[number:], jobs)
            return
        yield work(scan)


def _write(source: Source, out: Path, options: Options, max_gb: float, scan: ScanFile) -> PreparedScan:
    """Writes a scan unless it is there already; `source` need not have its scans."""
    with memory_limit(max_gb), foreign_errors_named(f"the reader of {scan.path}"):
        key = _key(source, scan, options)
        reused = is_written(out, scan.id, key, source.task)
        if not reused:
            with offering(scan.id), foreign_errors_named(f"the reader of {scan.path}"):
                content = read_scan(source, scan, options.window, options.size, key)
            write_arrays(out, *content)
    return PreparedScan(scan.id, reused)


def _split(source: Source, options: Options) -> dict[str, str | int]:
    if options.split_file is not None:
        return split_of_file(options.split_file, {scan.id: scan.group for scan in source.scans})
    return split(
        (scan.group for scan in source.scans),
        folds=options.folds,
        test_fraction=options.test_fraction,
        seed=options.seed,
        parts=_own_split(source),
    )


def _own_split(source: Source) -> dict[str, str]:
    """Each patient's part in the data set's own split, of those that have one.

    Raises:
        InputError: a patient is in two parts.
    """
    parts: dict[str, str] = {}
    for scan in source.scans:
        if parts.setdefault(scan.group, scan.part) != scan.part:
            raise InputError(
                f"expected each patient in one part, got {scan.group} in {parts[scan.group]} and {scan.part} of "
                f"{source.root}; move all images into one images/ and masks/ to have them split by patient"
            )
    return {group: part for group, part in parts.items() if part}


def _asked(source: Source, options: Options) -> dict[str, Any]:
    return {
        "version": VERSION,
        "source": str(real_path(source.root)),
        "format": source.format,
        "size": None if options.size is None else list(options.size),
        "window": str(options.window),
        **({"plane": source.plane} if source.plane else {}),
        "folds": options.folds,
        "test_fraction": options.test_fraction,
        "seed": options.seed,
        **({"split_file": file_hash(options.split_file)} if options.split_file else {}),
    }


@contextmanager
def begun(out: Path, asked: dict[str, Any]) -> Iterator[None]:
    """A scope in which this process alone writes a data set of these options to `out`.

    An error removes what was written into a new or empty `out`, or beside the scans of a finished data set. An
    interruption, or a disk that is full, leaves what the same call goes on from.

    Raises:
        InputError: `out` is a file, or other options or other files are there.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"expected a folder to write to, got the file {out}; give another --out")
    with locked(out):
        is_new, file, before = _begin(out, asked), out / "dataset.json", None
        with suppress(InputError):  # damaged: nothing to restore
            before = read_json(file) if file.is_file() else None
        try:
            yield
        except (Exception, SystemExit) as error:
            if errno_of(error.__cause__) not in FULL:
                if is_new:
                    _withdraw(out)
                elif before and not file.is_file():
                    _restore(out, before)
            raise


def _begin(out: Path, asked: dict[str, Any]) -> bool:
    """Writes the options to `out`, or checks that those there are the same; True if nothing was there before.

    Raises:
        InputError: other options or other files are there.
    """
    if (out / "options.json").exists():
        stored = read_json(out / "options.json")
        if not asked.keys() & stored.keys() >= {"source", "window", "test_fraction"}:
            raise InputError(
                f"expected {out} to be empty or a prepared data set, got {_other_folder(out)}; give another --out"
            )
        require_same_options(out, stored, asked)
        return False
    if any(path.name != LOCK and not is_part(path.name, _TOP) for path in out.iterdir()):
        raise InputError(f"expected {out} to be empty or a prepared data set, got other files; give another --out")
    write_json(out / "options.json", asked)
    return True


def _restore(out: Path, content: dict[str, Any]) -> None:
    """Makes `out` the data set of this description again if all of its scans are as they were."""
    with suppress(InputError, LookupError, TypeError):  # a scan has no record, as it is half rewritten; or damaged
        task = Task.from_json(content["task"])
        records = [read_record(out, scan, task) for scan in content["scans"]]
        if _fingerprint(task, records) == content["fingerprint"]:
            _prune(out, set(content["scans"]))
            write_json(out / "dataset.json", content)


def _other_folder(out: Path) -> str:
    return "a trained model" if "model" in read_json(out / "options.json") else "the options of something else"


def _key(source: Source, scan: ScanFile, options: Options) -> str:
    """Changes if what `_write` would write for this scan may have changed."""
    asked = {k: v for k, v in _asked(source, options).items() if k in ("version", "format", "size", "window", "plane")}
    files = [asdict(file) for file in source_files(source, scan)]
    phase = {"phase": scan.phase} if scan.phase else {}
    return digest({"options": asked, "task": source.task.to_json(), "sources": files} | phase)


def _finish(source: Source, out: Path, splits: dict[str, str | int]) -> None:
    ids = [scan.id for scan in source.scans]
    records = [read_record(out, scan, source.task) for scan in ids]
    owners: dict[str, str] = {}
    for record in records:
        for case in record.case_ids:
            if (other := owners.setdefault(case, record.id)) != record.id:
                raise InputError(
                    f"expected a name of its own for each slice of {source.root}, got {case!r} in the scans {other} "
                    f"and {record.id}; rename one, or repair the reader"
                )
    facts = summary(records, source.task, splits)
    notes = notes_on_scans({record.id: record.notes for record in records})
    absent = [] if source.format == UNLABELLED else _absent(source, facts["classes"])
    facts |= {"patient_rule": source.patient_rule, "plane": source.plane}
    _prune(out, set(ids))
    describe(out, source.task, records, splits, [*source.notes, *notes, *absent], facts)


def describe(
    out: Path,
    task: Task,
    records: Sequence[ScanRecord],
    splits: Mapping[str, str | int],
    notes: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Writes the description of a data set whose scans are all there, which makes it a prepared one."""
    content = {
        "version": VERSION,
        "task": task.to_json(),
        "fingerprint": _fingerprint(task, records),
        "scans": [record.id for record in records],
        "splits": dict(splits),
        "notes": list(notes),
        "summary": dict(facts),
    }
    path = out / "dataset.json"
    if not path.exists() or read_json(path) != content:  # an unchanged data set keeps its age
        write_json(path, content)


def _fingerprint(task: Task, records: Sequence[ScanRecord]) -> str:
    # sorted, so that it does not depend on the order of the scans
    return digest({"task": task.to_json(), "scans": sorted(record.digest for record in records)})


def _absent(source: Source, classes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Notes on classes that no scan has.

    Raises:
        InputError: none has any, and a threshold was given, which is then above all that the masks hold.
    """
    absent = [name for name, pixels in classes.items() if not pixels["voxels"]]
    if source.threshold and len(absent) == len(classes):
        raise InputError(
            f"--threshold: expected {' or '.join(absent)} in at least one mask of {source.root}, got none from "
            f"{source.threshold:g} on; lower it below the masks' values"
        )
    return [f"no scan has {name}: nothing of it can be scored" for name in absent]


def _prune(out: Path, ids: set[str]) -> None:
    """Removes what a killed run, or a scan that is no longer in the source, left behind."""
    for folder, suffix in _FOLDERS:
        for path in inside(out, folder).iterdir() if (out / folder).is_dir() else ():
            is_stale = path.name.endswith(suffix) and path.name.removesuffix(suffix) not in ids
            if is_stale or is_part(path.name):
                path.unlink()
    for path in out.iterdir():
        if is_part(path.name, _TOP):
            path.unlink()


def _withdraw(out: Path) -> None:
    """Removes what was written into a folder that held nothing before."""
    _prune(out, set())
    for name in ("options.json", "dataset.json"):
        (out / name).unlink(missing_ok=True)
    for folder, _ in _FOLDERS:
        with suppress(OSError):  # it is not there, or somebody else put a file into it
            (out / folder).rmdir()
