"""Writes a prepared data set: scan after scan, so that it can be killed and started again.

DATA/options.json         what was asked for; written first, and never changed
DATA/images/<scan>.npy    (slices, rows, columns), with several channels (channels, slices, rows, columns), as stored
DATA/labels/<scan>.npy    (slices, rows, columns): class index, or bit k for class k
DATA/scans/<scan>.json    geometry, windows, counts, pointers to the sources; written after the two arrays
DATA/dataset.json         task, splits, fingerprint, summary; written last, so that it stands for the whole
"""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg_attack.data.prepared import array_shapes, mapped
from medseg_attack.data.resample import resampled
from medseg_attack.data.source import Array, Scan, ScanFile, Source
from medseg_attack.data.splits import split
from medseg_attack.data.summary import counts, summary
from medseg_attack.data.windows import Percentile, WindowRule
from medseg_attack.errors import InputError, plural
from medseg_attack.files import FULL, digest, errno_of, read_json, whole, write_json
from medseg_attack.types import Task

VERSION = 1  # of the layout above


@dataclass(frozen=True)
class Options:
    """How to prepare.

    Attributes:
        size: rows, columns to resample to; None keeps each scan's own grid.
        test_fraction: of the patients, at least one.
        seed: of the split by patient.
    """

    size: tuple[int, int] | None = None
    window: WindowRule = Percentile()  # noqa: RUF009 - a frozen value
    folds: int = 5
    test_fraction: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Done:
    """One scan that is now in the prepared data set; `reused` if it was there before."""

    scan: str
    reused: bool


def prepare(source: Source, out: Path, options: Options = Options()) -> Iterator[Done]:
    """Writes `source` to `out`, and yields after each scan.

    Scans that are there already, from the same files (by size and time of change) and options, are reused;
    what is written is the same as that of an undisturbed run. After bad input, an `out` that this call made
    is removed.

    Raises:
        InputError: bad input, other options than those `out` was begun with, or a full disk.
    """
    splits = split(
        (scan.group for scan in source.scans),
        folds=options.folds, test_fraction=options.test_fraction, seed=options.seed, parts=_parts(source),
    )  # fmt: skip
    fresh = _claim(source, out, options)
    try:
        for scan in source.scans:
            key = _key(source, scan, options)
            reused = _is_written(out, scan, key)
            if not reused:
                (out / "dataset.json").unlink(missing_ok=True)
                _write(source, scan, out, options, key)
            yield Done(scan.id, reused)
        _finish(source, out, splits)
    except InputError as error:
        if fresh and errno_of(error.__cause__) not in FULL:
            shutil.rmtree(out)
        raise


def _parts(source: Source) -> dict[str, str]:
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
        "source": str(source.root.resolve()),
        "format": source.format,
        "size": None if options.size is None else list(options.size),
        "window": str(options.window),
        "folds": options.folds,
        "test_fraction": options.test_fraction,
        "seed": options.seed,
    }


def _claim(source: Source, out: Path, options: Options) -> bool:
    """Makes `out` this data set's folder; True if nothing was there before."""
    if out.resolve().is_relative_to(source.root.resolve()):
        raise InputError(f"expected a folder outside of {source.root} to write to, got {out}; give another --out")
    if out.exists() and not out.is_dir():
        raise InputError(f"expected a folder to write to, got the file {out}; give another --out")
    asked = _asked(source, options)
    if (out / "options.json").exists():
        begun = read_json(out / "options.json")
        other = sorted(name for name in asked.keys() | begun.keys() if asked.get(name) != begun.get(name))
        if other:
            differs = "; ".join(f"{name} {begun.get(name)!r} instead of {asked.get(name)!r}" for name in other)
            raise InputError(
                f"expected {out} to hold the data set that is asked for, got one of {differs}; "
                "give another --out, or delete the folder"
            )
        return False
    if out.exists() and any(path for path in out.iterdir() if not path.name.endswith(".part")):
        raise InputError(f"expected {out} to be empty or a prepared data set, got other files; give another --out")
    write_json(out / "options.json", asked)
    return True


def _key(source: Source, scan: ScanFile, options: Options) -> str:
    """Changes if what `_write` would write for this scan may have changed."""
    asked = {k: v for k, v in _asked(source, options).items() if k in ("version", "format", "size", "window")}
    return digest({"options": asked, "task": task_json(source.task), "sources": _pointers(source, scan)})


def _pointers(source: Source, scan: ScanFile) -> list[dict[str, Any]]:
    pointers = []
    for path in scan.sources:
        state = path.stat()
        place = path.relative_to(source.root).as_posix()
        pointers.append({"path": place, "size": state.st_size, "mtime_ns": state.st_mtime_ns})
    return pointers


def _is_written(out: Path, scan: ScanFile, key: str) -> bool:
    path = out / "scans" / f"{scan.id}.json"
    if not path.is_file() or (record := read_json(path)).get("key") != key:
        return False
    try:
        for kind, shape in array_shapes(record).items():
            mapped(out / kind / f"{scan.id}.npy", shape)
    except InputError:  # deleted or cut off since: write it again
        return False
    return True


def _write(source: Source, file: ScanFile, out: Path, options: Options, key: str) -> None:
    scan = file.read()
    _check(scan, file, source.task)
    windows = _windows(scan, file, options.window)
    shape_before = scan.labels.shape
    if options.size is not None:
        scan = resampled(scan, source.task, options.size)
    scan_digest = _digest(scan, file, windows)
    (out / "scans" / f"{file.id}.json").unlink(missing_ok=True)
    _write_array(out / "images" / f"{file.id}.npy", scan.stored)
    _write_array(out / "labels" / f"{file.id}.npy", scan.labels)
    record = {
        "key": key,
        "digest": scan_digest,
        "id": file.id,
        "group": file.group,
        "case_ids": list(scan.case_ids),
        "shape": list(scan.labels.shape),
        "shape_before": list(shape_before),
        "channels": len(scan.channels),
        "spacing_mm": list(scan.spacing_mm),
        "stored_type": str(scan.stored.dtype),
        "slope": None if scan.scales else scan.slope,
        "inter": None if scan.scales else scan.inter,
        "scales": [list(scale) for scale in scan.scales],
        "limits": scan.limits,
        "frames": [list(frame) for frame in scan.frames],
        "unit": scan.unit,
        "windows": windows.tolist(),
        "affine": None if scan.affine is None else scan.affine.tolist(),
        "lattice": None if scan.lattice is None else _lattice_json(scan),
        "sources": _pointers(source, file),
        "n_images": file.n_images,
        **counts(scan, source.task),
    }
    write_json(out / "scans" / f"{file.id}.json", record)


def _windows(scan: Scan, file: ScanFile, rule: WindowRule) -> NDArray[np.float64]:
    """Low and high of each slice, (slices, 2), with several channels (slices, 2, channels)."""
    each = [rule(values) for values in scan.native()]
    for channel, windows in enumerate(each):
        if not (windows[:, 0] < windows[:, 1]).all():
            raise InputError(
                f"expected more than one intensity in every channel, got one in channel {channel} of {file.path}; "
                "leave the case out, or give a window such as --window=0,255"
            )
    return each[0] if scan.stored.ndim == 3 else np.stack(each, axis=-1)


def _lattice_json(scan: Scan) -> dict[str, Any]:
    assert scan.lattice is not None
    return {
        "shape": list(scan.lattice.shape),
        "axes": list(scan.lattice.axes),
        "flips": list(scan.lattice.flips),
    }


def _check(scan: Scan, file: ScanFile, task: Task) -> None:
    stored, labels = scan.stored, scan.labels
    grid = scan.channels.shape[1:]
    if grid != labels.shape or len(labels) != len(scan.case_ids):
        raise InputError(
            f"expected image and mask of one shape, got {grid} and {labels.shape} in {file.path}; "
            "check that they belong together"
        )
    if len(scan.channels) != task.channels:
        raise InputError(
            f"expected {plural(task.channels, 'channel')} as the other cases have, got {len(scan.channels)} in "
            f"{file.path}; leave it out, or make its channels those of the others"
        )
    if not np.isfinite(stored).all():
        n = int((~np.isfinite(stored)).sum())
        raise InputError(f"expected finite intensities, got {n} that are NaN or infinite in {file.path}; repair it")
    if stored.min() == stored.max():
        raise InputError(f"expected an image, got {stored.min()} in every voxel of {file.path}; leave it out")
    n_labels = len(task.classes) if task.exclusive else 2 ** len(task.classes)
    if labels.max() >= n_labels:
        raise InputError(
            f"expected labels of {', '.join(task.classes)}, got {labels.max()} in {file.path}; check the mask"
        )
    alone = len(scan.labels) == 1 and scan.spacing_mm[0] == 0
    if not all(0 < mm < np.inf for mm in scan.spacing_mm[alone:]):
        raise InputError(f"spacing_mm: expected positive lengths, got {scan.spacing_mm} in {file.path}; check the file")


def _digest(scan: Scan, file: ScanFile, windows: NDArray[np.float64]) -> str:
    """Of pixels, labels, geometry, names and windows: not of paths, times, or how the file was compressed."""
    described = {
        "id": file.id,
        "group": file.group,
        "case_ids": list(scan.case_ids),
        "shape": list(scan.stored.shape),
        "types": [_portable(scan.stored).dtype.str, _portable(scan.labels).dtype.str],
        "spacing_mm": list(scan.spacing_mm),
        "scale": [scan.slope, scan.inter, scan.unit, *map(list, scan.scales)],
        "affine": None if scan.affine is None else scan.affine.tolist(),
        "windows": windows.tolist(),
    }
    total = hashlib.sha256(digest(described).encode())
    total.update(_portable(scan.stored).data)
    total.update(_portable(scan.labels).data)
    return total.hexdigest()


def _portable(array: Array) -> Array:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _write_array(path: Path, array: Array) -> None:
    array = _portable(array)
    with whole(path) as part, part.open("wb") as file:
        # np.save would lose the errno of a full disk, and with it the sentence that tells of it
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def task_json(task: Task) -> dict[str, Any]:
    """The task as it stands in dataset.json."""
    named = {"channel_names": list(task.channel_names)} if task.channel_names else {}
    return {
        "name": task.name,
        "classes": list(task.classes),
        "exclusive": task.exclusive,
        "channels": task.channels,
        **named,
    }


def _finish(source: Source, out: Path, splits: dict[str, str | int]) -> None:
    ids = [scan.id for scan in source.scans]
    _prune(out, set(ids))
    records = [read_json(out / "scans" / f"{scan}.json") for scan in ids]
    # sorted, so that it does not depend on the order in which the scans were found
    fingerprint = digest({"task": task_json(source.task), "scans": sorted(record["digest"] for record in records)})
    content = {
        "version": VERSION,
        "task": task_json(source.task),
        "fingerprint": fingerprint,
        "scans": ids,
        "splits": splits,
        "notes": list(source.notes),
        "summary": summary(records, source.task, splits),
    }
    path = out / "dataset.json"
    if not path.exists() or read_json(path) != content:  # an unchanged data set keeps its age
        write_json(path, content)


def _prune(out: Path, ids: set[str]) -> None:
    """Removes what a killed run, or a scan that is no longer in the source, left behind."""
    for folder, suffix in (("images", ".npy"), ("labels", ".npy"), ("scans", ".json")):
        for path in (out / folder).iterdir():
            if path.name.removesuffix(suffix) not in ids or not path.name.endswith(suffix):
                path.unlink()
    for path in out.glob(".*.part"):
        path.unlink(missing_ok=True)
