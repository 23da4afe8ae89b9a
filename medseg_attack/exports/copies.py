"""The files that perturbed copies of a scan consist of, and how they are read, each beside a sidecar of facts.

`exports.writing` writes them; `data.formats.dicom.writing` gives those in DICOM their UIDs.

RUN/adversarial/<the source's path>             the copy
RUN/adversarial/<scan's id>/<slice's id>.dcm    of DICOM, whose folders and files are often called by their patients
RUN/adversarial/<scan's id>.nii.gz              of a resampled scan, whatever its source
<the copy>.json                                 hash, attack, budget: its mark as a perturbed copy
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from medseg_attack.data.formats.dicom.decoders import decoded
from medseg_attack.data.formats.dicom.writing import geometry
from medseg_attack.data.formats.nifti import read_nifti, suffix_of
from medseg_attack.data.formats.pictures import is_picture, lossless, read_picture, reduced
from medseg_attack.data.formats.scan import Array
from medseg_attack.data.prepared.record import ScanRecord
from medseg_attack.errors import InputError
from medseg_attack.exports.resampled import SUFFIX, is_resampled, layout_of
from medseg_attack.runs.folder import COPIES
from medseg_attack.storage.forms import Form
from medseg_attack.storage.json_files import digest, read_json

MANIFEST = "manifest.json"  # beside the copies: the list of them


class _ListedFile(Form):
    """A copy or a segmentation in the manifest."""

    scan: str
    path: str
    slices: list[int]
    channels: list[int] = Field(default_factory=list)


class _ListedSegmentation(Form):
    """A segmentation in the manifest."""

    scan: str
    path: str
    sha256: str


class _Manifest(Form):
    """The list of a run's copies."""

    files: list[_ListedFile]
    which: str = Field("all", pattern="^(all|worst:[0-9]{1,9})$")
    segmentations: list[_ListedSegmentation] = Field(default_factory=list)


class Sidecar(Form):
    """The facts beside a copy."""

    sha256: str
    attack: str
    weights: str
    eps: float | None


def read_manifest(run: Path) -> dict[str, Any]:
    """The list of a run's copies.

    Raises:
        InputError: there is none, or a field of it is not what it should be.
    """
    return read_json(run / COPIES / MANIFEST, _Manifest)


@dataclass(frozen=True, eq=False)
class PerturbedCopy:
    """One file of a scan.

    Attributes:
        path: of the source, relative to its root.
        slices: positions of its slices in the scan, in the order of the file.
        channels: positions of its channels.
        name: of the copy, where the source's must stay private, or is that of another format.
    """

    path: str
    slices: tuple[int, ...]
    channels: tuple[int, ...] = (0,)
    name: str = ""

    @property
    def written(self) -> str:
        """The copy's path in the root of the copies: `path`, but PNG where that format would change the pixels."""
        return self.name or lossless(self.path, len(self.channels))

    @property
    def source(self) -> dict[str, str]:
        """The field of the files beside the copy that names its source; none where that must stay private."""
        return {} if self.name else {"source": self.path}

    def cases(self, record: ScanRecord, *, whole_scans: bool) -> list[str]:
        """The ids of the cases in the file: its slices, or the scan itself in a run on whole scans."""
        return [record.id] if whole_scans else [record.case_ids[n] for n in self.slices]


def copies_of(record: ScanRecord) -> list[PerturbedCopy]:
    """The image files of a prepared scan, from its record.

    Raises:
        InputError: the scan stands in a format that has no writer.
    """
    slices, channels = tuple(range(len(record.case_ids))), tuple(range(record.channels))
    first = record.sources[0].path
    if is_resampled(record):
        return [PerturbedCopy(first, slices, channels, f"{record.id}{SUFFIX}")]
    if record.frames:
        return [
            PerturbedCopy(path, in_file, channels, _name(record, in_file))
            for path, in_file in _by_file(record.frames).items()
        ]
    n = record.n_images or (len(slices) if first.lower().endswith(".png") else 1)
    paths = [source.path for source in record.sources[:n]]
    if is_picture(Path(first)) and n == len(slices):
        return [PerturbedCopy(path, (index,), channels) for index, path in enumerate(paths)]
    if record.lattice and suffix_of(first):
        return [PerturbedCopy(path, slices, channels if n == 1 else (index,)) for index, path in enumerate(paths)]
    raise InputError(f"expected pictures, NIfTI or DICOM to write copies of, got {first}; use --save-adversarial none")


def _name(record: ScanRecord, slices: Sequence[int]) -> str:
    """The name of a DICOM copy, built from ids alone."""
    ids = record.case_ids
    return f"{record.id}/{record.id if len(slices) == len(ids) else ids[min(slices)]}.dcm"


def _by_file(frames: Sequence[Sequence[Any]]) -> dict[str, tuple[int, ...]]:
    """Per file the scan's slices, in the order of the file's frames."""
    by_file: dict[str, list[tuple[int, int]]] = {}
    for n, (path, frame) in enumerate(frames):
        by_file.setdefault(path, []).append((frame, n))
    return {path: tuple(n for _, n in sorted(frames_of_file)) for path, frames_of_file in by_file.items()}


def has_scans(header: Mapping[str, Any]) -> bool:
    """Whether the cases of the run with that header are whole scans."""
    return bool(header.get("dims", 2) == 3)


def run_key(facts: Mapping[str, Any]) -> str:
    """A key of the run: another one gives other UIDs."""
    return digest({name: facts[name] for name in ("attack", "eps", "weights")})


def read_stored(path: Path, record: ScanRecord) -> tuple[Array, dict[str, Any]]:
    """Stored values (channels, slices, rows, columns) of an image file of a scan, and its geometry and scale.

    The slices are in the order of `PerturbedCopy.slices`.

    Raises:
        InputError: the file is broken, or of another shape.
    """
    if record.frames:
        return decoded(path)[None], dict(geometry(path))
    if is_picture(path):
        pixels = reduced(read_picture(path), record.channels, path)
        return pixels[:, None], {"shape": list(pixels.shape[1:]), "type": str(pixels.dtype)}
    volume = read_nifti(path, several=True)
    facts = {
        "shape": list(volume.stored.shape),
        "type": str(volume.stored.dtype.newbyteorder("=")),
        "slope": volume.header.slope,
        "inter": volume.header.inter,
        "affine": volume.header.affine.tolist(),
        "spacing_mm": volume.header.spacing_mm.tolist(),
    }
    layout, channels = layout_of(record), volume.channels
    if channels.shape[1:] != layout.shape:
        raise InputError(f"expected a volume of {layout.shape}, got {channels.shape[1:]} in {path}; write it again")
    return np.stack([layout.from_file(one) for one in channels]), facts
