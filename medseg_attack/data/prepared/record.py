"""One scan of a prepared data set: its two arrays, and the record that says what they are."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg_attack.data.datasets.source import ScanFile, Source
from medseg_attack.data.formats.scan import Array, Scan
from medseg_attack.data.prepared.reading import array_shapes, mapped
from medseg_attack.data.prepared.resampling import resampled
from medseg_attack.data.prepared.summary import counts
from medseg_attack.data.prepared.windows import WindowRule
from medseg_attack.errors import InputError, plural
from medseg_attack.files import digest, read_json, whole, write_json
from medseg_attack.types import Task


def source_files(source: Source, scan: ScanFile) -> list[dict[str, Any]]:
    """The files that a scan is read from, as they are now."""
    pointers = []
    for path in scan.sources:
        state = path.stat()
        place = path.relative_to(source.root).as_posix()
        pointers.append({"path": place, "size": state.st_size, "mtime_ns": state.st_mtime_ns})
    return pointers


def is_written(out: Path, scan: ScanFile, key: str) -> bool:
    """Whether `write_scan` has been there with this key, and its arrays still are."""
    path = out / "scans" / f"{scan.id}.json"
    if not path.is_file() or (record := read_json(path)).get("key") != key:
        return False
    try:
        for kind, shape in array_shapes(record).items():
            mapped(out / kind / f"{scan.id}.npy", shape)
    except InputError:  # deleted or cut off since: write it again
        return False
    return True


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
    _check(scan, file, source.task)
    windows = _windows(scan, file, window)
    shape_before = scan.labels.shape
    if size is not None:
        scan = resampled(scan, source.task, size)
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
        "padding": scan.padding,
        "frames": [list(frame) for frame in scan.frames],
        "unit": scan.unit,
        "windows": windows.tolist(),
        "affine": None if scan.affine is None else scan.affine.tolist(),
        "lattice": None if scan.lattice is None else _lattice_json(scan),
        "sources": source_files(source, file),
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
    return {"shape": list(scan.lattice.shape), "axes": list(scan.lattice.axes), "flips": list(scan.lattice.flips)}


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
    if scan.padded.all():
        raise InputError(f"expected an image, got PixelPaddingValue in every voxel of {file.path}; leave it out")
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
        **({} if scan.padding is None else {"padding": list(scan.padding)}),
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
