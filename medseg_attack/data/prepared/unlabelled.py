"""Scans without labels, prepared with the window, size and plane of a data set that is there already."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medseg_attack.data.cohort.doubles import unique
from medseg_attack.data.datasets.source import UNLABELLED, ScanFile, Source, label_type, require_folder
from medseg_attack.data.formats import folders
from medseg_attack.data.formats.dicom.index import index
from medseg_attack.data.formats.dicom.reading import is_dicom
from medseg_attack.data.formats.dicom.series import Series, files_of, read_stored, series_of
from medseg_attack.data.formats.leaving_out import FLAG, is_left_out, left_out_notes, offering, refuse_unknown
from medseg_attack.data.formats.nifti import layout, read_nifti, stem, suffix_of
from medseg_attack.data.formats.pictures import is_picture, read_picture, reduced
from medseg_attack.data.formats.scan import Array, Lattice, Scan
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.data.prepared.windows import window_rule
from medseg_attack.data.prepared.writing import Options, prepare
from medseg_attack.errors import InputError, listed
from medseg_attack.escaping import whole_characters
from medseg_attack.storage.json_files import digest
from medseg_attack.types import Task


def prepare_unlabelled(root: Path, out: Path, task: Task, options: Mapping[str, Any]) -> Prepared:
    """The NIfTI files, DICOM series and pictures below a folder, each a patient of its own, prepared into `out`.

    Args:
        options: window, size and plane of the data set that the model was trained on.

    Raises:
        InputError: there is no scan, or one cannot be read.
    """
    source = unlabelled(root, task, str(options.get("plane") or ""))
    size = options.get("size")
    how = Options(None if size is None else (int(size[0]), int(size[1])), window_rule(str(options["window"])), 5, 1.0)
    for _ in prepare(source, out, how):
        pass
    return open_prepared(out)


def unlabelled(root: Path, task: Task, plane: str = "") -> Source:
    """The scans below a folder, whose labels are empty.

    Args:
        plane: of the slices of NIfTI files; "": that in which each seems to have been acquired.

    Raises:
        InputError: there is no scan, or two have one name.
    """
    require_folder(root, "scans")
    files = {path.relative_to(root).as_posix(): path for path in folders.walk(root)[0]}
    scans: list[ScanFile] = []
    others: list[str] = []
    for name, path in files.items():
        if is_left_out(name):
            continue
        if stem(path) is not None:
            scans.append(_scan(name, path, (path,), functools.partial(_nifti, path, task, plane)))
        elif is_picture(path):
            scans.append(_scan(name, path, (path,), functools.partial(_picture, path, task)))
        elif path.suffix.lower() != ".dcm" and not is_dicom(path):
            others.append(name)
    headers = index(root)
    for images in headers.images.values():
        if is_left_out(images.uid):
            continue
        with offering(images.uid):
            series = series_of(images)
        paths = tuple(files_of(series))
        name = paths[0].parent.relative_to(root).as_posix()
        name = f"{'' if name == '.' else f'{name}_'}{digest(images.uid)[:8]}"
        scans.append(_scan(name, paths[0].parent, paths, functools.partial(_series, series, task, root)))
    kept = [scan for scan in scans if not is_left_out(scan.id)]
    left_out = left_out_notes()
    if not kept and left_out:
        raise InputError(f"{FLAG}: expected a scan of {root} that is not left out, got none; name fewer")
    if not kept:
        raise InputError(f"expected NIfTI files, DICOM series or pictures in {root}, got none; name another folder")
    refuse_unknown()
    unique(((scan.id, scan.path) for scan in kept), "scan")
    ordered = tuple(sorted(kept, key=lambda scan: scan.id))
    unread = [f"no NIfTI files, DICOM files or pictures, and not looked at: {listed(others)}"] if others else []
    notes = tuple(map(whole_characters, (*unread, *headers.notes, *left_out)))
    return Source(root, UNLABELLED, task, ordered, notes, plane=plane, patient_rule="each scan")


def _scan(name: str, path: Path, sources: tuple[Path, ...], read: Callable[[str], Scan]) -> ScanFile:
    scan_id = "".join(c if c.isalnum() or c in "-_." else "_" for c in name.removesuffix(suffix_of(name)))
    return ScanFile(scan_id, scan_id, path, sources, functools.partial(read, scan_id), len(sources))


def _of(name: str, stored: Array, spacing_mm: tuple[float, float, float], task: Task, **more: Any) -> Scan:
    grid = stored.shape[-3:]
    if stored.ndim - 3 != (task.channels > 1) or (task.channels > 1 and len(stored) != task.channels):
        got = len(stored) if stored.ndim == 4 else 1
        raise InputError(f"expected {task.channels} channels in {name}, got {got}; name scans of the model's kind")
    case_ids = tuple(f"{name}_slice_{n:03d}" for n in range(grid[0]))
    return Scan(stored, np.zeros(grid, label_type(task)), case_ids, spacing_mm, **more)


def _nifti(path: Path, task: Task, plane: str, name: str) -> Scan:
    volume = read_nifti(path, several=task.channels > 1)
    lattice, spacing = layout(volume, plane)
    channels = [np.ascontiguousarray(lattice.from_file(channel)) for channel in volume.channels]
    stored = np.stack(channels) if len(channels) > 1 else channels[0]
    scale = {"slope": volume.header.slope, "inter": volume.header.inter}
    return _of(name, stored, spacing, task, lattice=lattice, affine=volume.header.affine, **scale)


def _picture(path: Path, task: Task, name: str) -> Scan:
    pixels = reduced(read_picture(path), task.channels, path)
    stored = pixels if task.channels == 1 else pixels[:, None]
    return _of(name, stored, (0.0, 1.0, 1.0), task, lattice=Lattice((1, *pixels.shape[1:])))


def _series(series: Series, task: Task, root: Path, name: str) -> Scan:
    scales = series.scales
    slope, inter = scales[0] if len(set(scales)) == 1 else (1.0, 0.0)
    return _of(
        name,
        read_stored(series),
        series.grid.spacing_mm,
        task,
        slope=slope,
        inter=inter,
        unit=series.unit,
        affine=series.grid.affine,
        scales=() if len(set(scales)) == 1 else scales,
        limits=series.pixels.limits,
        padding=series.padding,
        frames=tuple((frame.path.relative_to(root).as_posix(), frame.number) for frame in series.frames),
    )
