"""Writes one scan of a prepared data set: its two arrays, then the record that says what they are."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from medseg_attack.data.datasets.source import ScanFile, Source
from medseg_attack.data.formats.scan import Array, Scan
from medseg_attack.data.prepared.record import ClassPixels, ScanRecord, SourceFile, damage, portable, read_record
from medseg_attack.data.prepared.resampling import resampled
from medseg_attack.data.prepared.windows import WindowRule, ends
from medseg_attack.errors import InputError, plural
from medseg_attack.escaping import whole_characters
from medseg_attack.registry.foreign import words_of
from medseg_attack.storage.files import whole
from medseg_attack.storage.json_files import write_json
from medseg_attack.storage.paths import inside
from medseg_attack.types import Task


def source_files(source: Source, scan: ScanFile) -> tuple[SourceFile, ...]:
    """The files that a scan is read from, as they are now."""
    states = [(path.relative_to(source.root).as_posix(), path.stat()) for path in scan.sources]
    return tuple(SourceFile(path=path, size=state.st_size, mtime_ns=state.st_mtime_ns) for path, state in states)


def is_written(out: Path, scan: str, key: str, task: Task) -> bool:
    """Whether a scan of that id was written with this key, and what was written is there, bit for bit."""
    if not inside(out, f"scans/{scan}.json").is_file():
        return False
    try:
        record = read_record(out, scan, task)
    except InputError:  # changed since: write it again
        return False
    return record.key == key and not damage(out, record)


def read_scan(
    source: Source, file: ScanFile, window: WindowRule, size: tuple[int, int] | None, key: str
) -> tuple[ScanRecord, Array, Array]:
    """The record without its digest, stored values and labels, as `write_arrays` takes them.

    Args:
        size: rows, columns to resample to.
        key: what `is_written` will be asked for.

    Raises:
        InputError: the scan cannot be used.
    """
    scan = file.read()
    _check_types(scan, file)
    names = _names(scan, file)
    scan = replace(scan, case_ids=names, notes=(*scan.notes, *scan.doubts))
    _check(scan, file, source.task)
    windows = _windows(scan, file, window)
    shape_before = scan.labels.shape
    if size is not None:
        scan = resampled(scan, source.task, size)
    facts = {
        "key": key,
        "digest": "",
        "id": file.id,
        "group": file.group,
        "shape": scan.labels.shape,
        "shape_before": shape_before,
        "channels": len(scan.channels),
        "stored_type": str(scan.stored.dtype),
        "slope": None if scan.scales else scan.slope,
        "inter": None if scan.scales else scan.inter,
        "windows": windows.tolist(),
        "affine": None if scan.affine is None else np.asarray(scan.affine).tolist(),
        "sources": source_files(source, file),
        "n_images": file.n_images,
        "intensity": _intensity(scan),
        "classes": pixels_by_class(scan.labels, source.task),
        "phase": file.phase,
    }
    try:
        record = ScanRecord(**(vars(scan) | facts))  # other fields are called as those of the scan
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(
            f"expected the field {field!r} of the scan in {file.path} to be as documented ({first['msg'].lower()}), "
            f"got {first['input']!r:.60}; repair its reader, or leave it out"
        ) from error
    return record, scan.stored, scan.labels


def write_arrays(out: Path, record: ScanRecord, stored: Array, labels: Array) -> None:
    """Writes the two arrays of a scan, then its record with their digest; a data set of before is no longer whole."""
    (out / "dataset.json").unlink(missing_ok=True)
    record = replace(record, digest=record.content_digest(stored, labels))
    of_record = inside(out, f"scans/{record.id}.json")
    of_record.unlink(missing_ok=True)
    _write_array(inside(out, f"images/{record.id}.npy"), stored)
    _write_array(inside(out, f"labels/{record.id}.npy"), labels)
    write_json(of_record, record.to_json())


def _windows(scan: Scan, file: ScanFile, rule: WindowRule) -> NDArray[np.float64]:
    """Low and high of each slice, (slices, 2), with several channels (slices, 2, channels)."""
    each = [rule(slices) for slices in scan.intensities]
    for channel, windows in enumerate(each):
        if not (windows[:, 0] < windows[:, 1]).all():
            raise InputError(
                f"expected more than one intensity in every channel, got one in channel {channel} of {file.path}; "
                "leave the case out, or give a window such as --window=0,255"
            )
    return each[0] if scan.stored.ndim == 3 else np.stack(each, axis=-1)


def _intensity(scan: Scan) -> tuple[float, float]:
    """The least and the largest intensity of the scan."""
    of_channels = [end for slices in scan.intensities for end in ends(slices)]
    return min(of_channels), max(of_channels)


def pixels_by_class(labels: Array, task: Task) -> dict[str, ClassPixels]:
    """Labelled slices and voxels of each class that is scored."""
    classes: dict[str, ClassPixels] = {}
    for k in task.scored:
        pixels = [int(np.count_nonzero(plane == k if task.exclusive else (plane >> k) & 1)) for plane in labels]
        classes[task.classes[k]] = ClassPixels(slices=sum(n > 0 for n in pixels), voxels=sum(pixels))
    return classes


def _check_types(scan: Any, file: ScanFile) -> None:
    """Refuses what a reader returns if its arrays or numbers are none that a record holds.

    Raises:
        InputError: they are not.
    """
    if not isinstance(scan, Scan):
        raise InputError(f"expected a Scan of {file.path}, got {words_of(scan)}; repair its reader")
    for name, array, kinds in (("stored values", scan.stored, "iuf"), ("labels", scan.labels, "iu")):
        is_array = isinstance(array, np.ndarray) and not isinstance(array, np.ma.MaskedArray)
        if not is_array or array.dtype.kind not in kinds or array.dtype.itemsize > 8 or not array.size:
            words = "whole numbers" if kinds == "iu" else "numbers"
            raise InputError(
                f"expected {name} of {file.path} as a NumPy array of {words} of up to 64 bits, got "
                f"{words_of(array)}; repair its reader"
            )
    n_axes = scan.stored.ndim
    if n_axes not in (3, 4) or (n_axes == 4 and len(scan.stored) < 2):
        raise InputError(
            f"expected stored values of {file.path} as (slices, rows, columns), or with two or more channels before "
            f"these, got {scan.stored.shape}; repair its reader"
        )
    n = len(scan.channels)
    numbers = {
        "spacing_mm": (scan.spacing_mm, 3),
        "slope": (scan.slope, n if isinstance(scan.slope, tuple) else None),
        "inter": (scan.inter, n if isinstance(scan.inter, tuple) else None),
        "affine": (scan.affine, 16),
        "scales": (scan.scales or None, 2 * len(scan.labels)),
        "limits": (scan.limits, 2),
        "padding": (scan.padding, 2),
    }
    for name, (value, size) in numbers.items():
        if value is None and name not in ("spacing_mm", "slope", "inter"):
            continue
        array = _numbers(value)
        flat = array.ravel()
        is_spacing = name == "spacing_mm"  # whose lengths are looked at later
        is_whole = len(flat) == (size or 1) and (name != "affine" or array.shape == (4, 4))
        if not is_whole or not (is_spacing or np.isfinite(flat).all()):
            raise InputError(
                f"expected {plural(size or 1, 'finite number')} as {name} of {file.path}, got "
                f"{value!r:.60}; repair its reader, or leave it out"
            )
        if name in ("limits", "padding") and flat[0] > flat[1]:
            raise InputError(f"expected {name} of {file.path} in rising order, got {value}; repair its reader")


def _numbers(value: Any) -> NDArray[np.float64]:
    """A value of a scan as an array of numbers, an empty one if it is none."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unlike length
        array = np.array([None])
    return array.astype(np.float64) if array.dtype.kind in "iuf" else np.array([])


def _names(scan: Scan, file: ScanFile) -> tuple[str, ...]:
    """The names of a scan's slices.

    Raises:
        InputError: one is no text, or stands twice.
    """
    names = tuple(scan.case_ids)
    wrong = [name for name in names if not isinstance(name, str)] or [n for n, k in Counter(names).items() if k > 1]
    if wrong:
        raise InputError(
            f"expected a name of its own for each slice of {file.path}, got {wrong[0]!r}"
            f"{' twice' if isinstance(wrong[0], str) else ''}; repair its reader"
        )
    return tuple(map(whole_characters, names))


def _check(scan: Scan, file: ScanFile, task: Task) -> None:
    stored, labels = scan.stored, scan.labels
    grid = scan.channels.shape[1:]
    if grid != labels.shape or len(labels) != len(scan.case_ids):
        raise InputError(
            f"expected image and mask of one shape, got {grid} and {labels.shape} in {file.path}; "
            "give each image its own mask, or leave it out"
        )
    if len(scan.channels) != task.channels:
        raise InputError(
            f"expected {plural(task.channels, 'channel')}, as the data set has, in {file.path}, got "
            f"{len(scan.channels)}; leave it out, or give it these channels"
        )
    if n := sum(int(np.count_nonzero(~np.isfinite(plane))) for channel in scan.channels for plane in channel):
        raise InputError(f"expected finite intensities, got {n} that are NaN or infinite in {file.path}; repair it")
    if scan.padding is not None and scan.padded.all():
        raise InputError(f"expected an image, got PixelPaddingValue in every voxel of {file.path}; leave it out")
    if stored.min() == stored.max():
        raise InputError(f"expected an image, got {stored.min()} in every voxel of {file.path}; leave it out")
    n_labels = len(task.classes) if task.exclusive else 2 ** len(task.classes)
    if labels.max() >= n_labels or labels.min() < 0:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise InputError(
            f"expected labels of {', '.join(task.classes)}, got {wrong} in {file.path}; "
            "leave the case out, or name the classes with --labels"
        )
    alone = len(scan.labels) == 1 and scan.spacing_mm[0] == 0
    if not all(0 < mm < np.inf for mm in scan.spacing_mm[alone:]):
        raise InputError(
            f"spacing_mm: expected positive lengths, got {scan.spacing_mm} in {file.path}; "
            "correct its header, or leave it out"
        )


def _write_array(path: Path, array: Array) -> None:
    array = portable(array)
    with whole(path) as part, part.open("wb") as file:
        # np.save would lose the errno of a full disk, and with it the sentence that tells of it
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)
