"""Which series a file with labels belongs to: by its references, or by where its voxels lie."""

from collections.abc import Mapping
from pathlib import Path

from medseg_attack.data.formats.dicom.alignment import NIFTI, overlay_of
from medseg_attack.data.formats.dicom.index import Index, UncheckedSeries
from medseg_attack.data.formats.dicom.label_files import LabelFile
from medseg_attack.data.formats.dicom.series import Series, series_of
from medseg_attack.data.formats.nifti import read_nifti
from medseg_attack.errors import InputError


def series_of_label(label: LabelFile, images: Mapping[str, UncheckedSeries]) -> list[str]:
    """UIDs of the series that it may belong to; the first rule that finds one decides."""
    if label.kind == NIFTI:
        return _of_nifti(label, images)
    named = [uid for uid in images if uid in label.series]
    named = named or [uid for uid, one in images.items() if is_referred_to(one, label)]
    if named or (label.kind == "SEG" and (label.series or label.instances)):
        return named
    near = [uid for uid, one in images.items() if label.place and one.place == label.place]
    near = near or [uid for uid, one in images.items() if one.patient == label.patient]
    return near if len(near) < 2 else [uid for uid in near if _usable(images[uid])]


def is_referred_to(images: UncheckedSeries, label: LabelFile) -> bool:
    """Whether the file with labels names the series, or one of its images."""
    return images.uid in label.series or not label.instances.isdisjoint(frame.uid for frame in images.frames)


def _of_nifti(label: LabelFile, images: Mapping[str, UncheckedSeries]) -> list[str]:
    """Series of exactly its voxels, or else those of which it has a part, or which are a part of it."""
    volume = read_nifti(label.path)
    usable = {uid: _usable(one) for uid, one in images.items()}
    overlays = {uid: overlay_of(volume, series.grid) for uid, series in usable.items() if series is not None}
    hits = {uid: overlay for uid, overlay in overlays.items() if overlay is not None}
    return [uid for uid, overlay in hits.items() if overlay.inside and overlay.covers] or list(hits)


def _usable(images: UncheckedSeries) -> Series | None:
    try:
        return series_of(images)
    except InputError:
        return None


def left_out(label: LabelFile, root: Path) -> str:
    """A note on a file that belongs to none."""
    place = label.path.relative_to(root)
    if label.kind == NIFTI:
        return f"{place} is left out: its {_size(label.path)} are voxels of no series"
    return f"{place} is left out: a {label.kind} of a series that is not in SOURCE, or left out"


def no_labels(objects: Index, root: Path) -> str:
    """The sentence about a folder in which no series has labels."""
    if not objects.images:
        return f"expected DICOM series in {root}, got none; give the folder that holds them"
    if not objects.labels:
        return (
            f"expected a SEG or RTSTRUCT with the series in {root}, got none; add one, or name NIfTI label maps with "
            "dicom(masks='*.nii.gz')"
        )
    label = objects.labels[0]
    if label.kind == NIFTI:
        usable = [series for one in objects.images.values() if (series := _usable(one)) is not None]
        voxels = " or ".join(_voxels(series.grid.shape[::-1], series.grid.spacing_mm[::-1]) for series in usable[:3])
        return (
            f"expected labels on the voxels of a series in {root} ({voxels or 'none is a scan'}), got {label.path} of "
            f"{_size(label.path)}, or elsewhere; resample it onto its series (nearest neighbour), or add that series"
        )
    of = f" of the series {', '.join(sorted(label.series))}" if label.series else ""
    return (
        f"expected labels of a series in {root} ({', '.join(objects.images)}), got {label.path}{of}; "
        "add that series, or labels of these"
    )


def _size(path: Path) -> str:
    volume = read_nifti(path)
    stated = volume.header.unit  # where there is none, mm are what it means
    unit = "" if stated in ("millimetres", "no unit") else f" (its header: {stated})"
    return _voxels(volume.stored.shape, tuple(volume.header.spacing_mm)) + unit


def _voxels(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> str:
    return f"{' x '.join(map(str, shape))} voxels of {' x '.join(f'{mm:.3g}' for mm in spacing_mm)} mm"
