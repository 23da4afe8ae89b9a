"""Writes one scan of a prepared data set: its two arrays, then the record that says what they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg_attack.data.datasets.source import ScanFile, Source
from medseg_attack.data.formats.scan import Array, Scan
from medseg_attack.data.prepared.record import ClassPixels, ScanRecord, SourceFile, damage, portable, read_record
from medseg_attack.data.prepared.resampling import resampled
from medseg_attack.data.prepared.windows import WindowRule, ends
from medseg_attack.errors import InputError, plural
from medseg_attack.escaping import whole_characters
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


def write_scan(
    source: Source, file: ScanFile, out: Path, window: WindowRule, size: tuple[int, int] | None, key: str
) -> None:
    """Writes the arrays, then the record.

    Args:
        size: rows, columns to resample to.
        key: what `is_written` will be asked for.

    Raises:
        InputError: the scan cannot be used.
    """
    scan = file.read()
    names = tuple(map(whole_characters, scan.case_ids))
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
        "affine": None if scan.affine is None else scan.affine.tolist(),
        "sources": source_files(source, file),
        "n_images": file.n_images,
        "intensity": _intensity(scan),
        "classes": pixels_by_class(scan.labels, source.task),
        "phase": file.phase,
    }
    record = ScanRecord(**(vars(scan) | facts))  # other fields are called as those of the scan
    write_arrays(out, record, scan.stored, scan.labels)


def write_arrays(out: Path, record: ScanRecord, stored: Array, labels: Array) -> None:
    """Writes the two arrays of a scan, then its record with their digest."""
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
            f"expected {plural(task.channels, 'channel')} as the other cases have, got {len(scan.channels)} in "
            f"{file.path}; leave it out, or make its channels those of the others"
        )
    if n := sum(int(np.count_nonzero(~np.isfinite(plane))) for channel in scan.channels for plane in channel):
        raise InputError(f"expected finite intensities, got {n} that are NaN or infinite in {file.path}; repair it")
    if scan.padding is not None and scan.padded.all():
        raise InputError(f"expected an image, got PixelPaddingValue in every voxel of {file.path}; leave it out")
    if stored.min() == stored.max():
        raise InputError(f"expected an image, got {stored.min()} in every voxel of {file.path}; leave it out")
    n_labels = len(task.classes) if task.exclusive else 2 ** len(task.classes)
    if labels.max() >= n_labels:
        raise InputError(
            f"expected labels of {', '.join(task.classes)}, got {labels.max()} in {file.path}; "
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
