"""Perturbed twins of scans, in the source's own format, each beside a sidecar that says what it is.

RUN/adversarial/<the source's path>             the twin
RUN/adversarial/<scan's id>/<slice's id>.dcm    of DICOM, whose folders and files are often called by their patients
<the twin>.json                                 hash, attack, budget: its mark as a perturbed copy
"""

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from medseg_attack.data.formats.dicom.series import decoded
from medseg_attack.data.formats.dicom.writing import geometry, twin_bytes
from medseg_attack.data.formats.nifti import read_nifti
from medseg_attack.data.formats.pictures import is_picture, lossless, read_picture, reduced, write_picture
from medseg_attack.data.formats.scan import Array
from medseg_attack.data.prepared.record import ScanRecord
from medseg_attack.errors import InputError
from medseg_attack.files import digest, whole, write_json

MARK = "perturbed by medattack: not for diagnosis"
_PRIVATE = ("descrip", "aux_file", "intent_name", "db_name")  # NIfTI's free texts


@dataclass(frozen=True, eq=False)
class PerturbedCopy:
    """One file of a scan.

    Attributes:
        path: of the source, relative to its root.
        slices: positions of its slices in the scan, in the order of the file.
        channels: positions of its channels.
        name: of the twin, where the source's must stay private.
    """

    path: str
    slices: tuple[int, ...]
    channels: tuple[int, ...] = (0,)
    name: str = ""

    @property
    def written(self) -> str:
        """The twin's path in the root of the twins: `path`, but PNG where that format would change the pixels."""
        return self.name or lossless(self.path, len(self.channels))

    @property
    def source(self) -> dict[str, str]:
        """The field of the files beside the twin that names its source; none where that must stay private."""
        return {} if self.name else {"source": self.path}


def copies_of(record: ScanRecord) -> list[PerturbedCopy]:
    """The image files of a prepared scan, from its record.

    Raises:
        InputError: the scan was resampled, or stands in a format that has no writer.
    """
    if record.shape != record.shape_before:
        raise InputError(
            f"expected scans on their own grid to write them back, got {record.id} resampled to "
            f"{list(record.shape[1:])}; prepare without --size, or attack with --save-adversarial none"
        )
    slices, channels = tuple(range(len(record.case_ids))), tuple(range(record.channels))
    if record.frames:
        return [
            PerturbedCopy(path, in_file, channels, _name(record, in_file))
            for path, in_file in _by_file(record.frames).items()
        ]
    first = record.sources[0].path
    n = record.n_images or (len(slices) if first.endswith(".png") else 1)
    paths = [source.path for source in record.sources[:n]]
    if is_picture(Path(first)) and n == len(slices):
        return [PerturbedCopy(path, (index,), channels) for index, path in enumerate(paths)]
    if record.lattice and first.endswith((".nii", ".nii.gz")):
        return [PerturbedCopy(path, slices, channels if n == 1 else (index,)) for index, path in enumerate(paths)]
    raise InputError(f"expected pictures, NIfTI or DICOM to write twins of, got {first}; use --save-adversarial none")


def _name(record: ScanRecord, slices: Sequence[int]) -> str:
    """The name of a DICOM twin, built from ids alone."""
    ids = record.case_ids
    return f"{record.id}/{record.id if len(slices) == len(ids) else ids[min(slices)]}.dcm"


def _by_file(frames: Sequence[Sequence[Any]]) -> dict[str, tuple[int, ...]]:
    """Per file the scan's slices, in the order of the file's frames."""
    by_file: dict[str, list[tuple[int, int]]] = {}
    for n, (path, frame) in enumerate(frames):
        by_file.setdefault(path, []).append((frame, n))
    return {path: tuple(n for _, n in sorted(frames_of_file)) for path, frames_of_file in by_file.items()}


def write_twin(
    root: Path,
    twin: PerturbedCopy,
    source: Path,
    record: ScanRecord,
    stored: Array,
    facts: Mapping[str, Any],
    *,
    keep_headers: bool = False,
) -> None:
    """Writes the twin, then its sidecar.

    Args:
        root: of the twins, never inside the source's.
        source: root of the source.
        stored: of the whole scan, (channels, slices, rows, columns), in the type of the file.
        facts: what the sidecar says beside the file's hash; for DICOM with "attack", "told", "eps", "weights".
        keep_headers: whether the patient's and other headers are copied.
    """
    path = root / twin.written
    if path.resolve().is_relative_to(source.resolve()):
        raise InputError(f"expected a folder outside of {source} to write twins to, got {root}; give another --out")
    values = stored[list(twin.channels)][:, list(twin.slices)]
    with whole(path) as part:
        if record.frames:
            content = twin_bytes(
                source / twin.path,
                values[0],
                patient=record.group,
                attack=facts["told"],
                key=run_key(facts),
                keep_headers=keep_headers,
            )
            part.write_bytes(content)
        elif is_picture(path):
            write_picture(part, values[:, 0], source / twin.path, path.name)
        else:
            layout = record.lattice
            assert layout is not None  # `copies_of` refuses such scans
            volumes = np.stack([layout.to_file(channel) for channel in values], axis=-1)
            part.write_bytes(_nifti(source / twin.path, volumes, keep_headers))
    sidecar = {"mark": MARK, "sha256": sha256(path), **twin.source, **facts}
    if twin.written not in (twin.path, twin.name):
        sidecar["format"] = f"PNG, because {Path(twin.path).suffix} would change the pixels again"
    write_json(path.with_name(path.name + ".json"), sidecar)


def run_key(facts: Mapping[str, Any]) -> str:
    """A key of the run: another one gives other UIDs."""
    return digest({name: facts[name] for name in ("attack", "eps", "weights")})


def read_stored(path: Path, record: ScanRecord) -> tuple[Array, dict[str, Any]]:
    """Stored values (channels, slices, rows, columns) of an image file of a scan, and its geometry and scale.

    The slices are in the order of `Twin.slices`.

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
        "slope": volume.slope,
        "inter": volume.inter,
        "affine": volume.affine.tolist(),
        "spacing_mm": volume.spacing_mm.tolist(),
    }
    layout = record.lattice
    assert layout is not None  # `copies_of` refuses such scans
    channels = volume.channels
    if channels.shape[1:] != layout.shape:
        raise InputError(f"expected a volume of {layout.shape}, got {channels.shape[1:]} in {path}; write it again")
    return np.stack([layout.from_file(one) for one in channels]), facts


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _nifti(source: Path, stored: Array, keep_headers: bool) -> bytes:
    """The source's file with other stored values: same type, scale and geometry, without its free texts."""
    image: Any = nibabel.load(source)
    header = image.header.copy()
    if not keep_headers:
        header.extensions.clear()  # they may hold a whole DICOM header
        for field in _PRIVATE:
            if field in header:
                header[field] = b""
    if "descrip" in header:
        header["descrip"] = MARK.encode()
    slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    data = stored.reshape(image.shape).astype(header.get_data_dtype())
    content = bytearray(type(image)(data, None, header).to_bytes())
    # nibabel scales what it writes; the stored values are to stay, so the scale is put in afterwards
    scaled = type(header)(bytes(content[: header.sizeof_hdr]))
    scaled["scl_slope"], scaled["scl_inter"] = slope, inter
    content[: header.sizeof_hdr] = scaled.binaryblock
    return gzip.compress(bytes(content), mtime=0) if source.name.endswith(".gz") else bytes(content)
