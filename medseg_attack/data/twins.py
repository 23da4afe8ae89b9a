"""Perturbed twins of scans, in the source's own format, each beside a sidecar that says what it is.

RUN/adversarial/<the source's path>         the twin
RUN/adversarial/<the source's path>.json    hash, attack, budget: its mark as a perturbed copy
"""

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from medseg_attack.data.dicom import decoded
from medseg_attack.data.dicom_twins import geometry, twin_bytes
from medseg_attack.data.nifti import read_nifti
from medseg_attack.data.png import read_png16, write_png16
from medseg_attack.data.source import Array, Lattice
from medseg_attack.errors import InputError
from medseg_attack.files import digest, whole, write_json

MARK = "perturbed by medattack: not for diagnosis"
_PRIVATE = ("descrip", "aux_file", "intent_name", "db_name")  # NIfTI's free texts


@dataclass(frozen=True, eq=False)
class Twin:
    """One file of a scan.

    Attributes:
        path: relative to the root of the source, and to that of the twins.
        slices: positions of its slices in the scan, in the order of the file.
    """

    path: str
    slices: tuple[int, ...]


def twins_of(record: Mapping[str, Any]) -> list[Twin]:
    """The image files of a prepared scan, from its record.

    Raises:
        InputError: the scan was resampled, or stands in a format that has no writer.
    """
    if record["shape"] != record["shape_before"]:
        raise InputError(
            f"expected scans on their own grid to write them back, got {record['id']} resampled to "
            f"{record['shape'][1:]}; prepare without --size, or attack with --save-adversarial none"
        )
    if record.get("frames"):
        return [Twin(path, slices) for path, slices in _by_file(record["frames"]).items()]
    paths = [source["path"] for source in record["sources"]]
    slices = [path for path in paths if path.endswith(".png")]
    if len(slices) == len(record["case_ids"]):
        return [Twin(path, (n,)) for n, path in enumerate(slices)]
    if record["lattice"] and paths[0].endswith((".nii", ".nii.gz")):
        return [Twin(paths[0], tuple(range(len(record["case_ids"]))))]
    raise InputError(
        f"expected PNG, NIfTI or DICOM files to write twins of, got {paths[0]}; use --save-adversarial none"
    )


def _by_file(frames: Sequence[Sequence[Any]]) -> dict[str, tuple[int, ...]]:
    """Per file the scan's slices, in the order of the file's frames."""
    found: dict[str, list[tuple[int, int]]] = {}
    for n, (path, frame) in enumerate(frames):
        found.setdefault(path, []).append((frame, n))
    return {path: tuple(n for _, n in sorted(here)) for path, here in found.items()}


def write_twin(
    root: Path, twin: Twin, source: Path, record: Mapping[str, Any], stored: Array, facts: Mapping[str, Any],
    *, keep_headers: bool = False,
) -> None:  # fmt: skip
    """Writes the twin, then its sidecar.

    Args:
        root: of the twins, never inside the source's.
        source: root of the source.
        stored: of the whole scan, (slices, rows, columns), in the type of the file.
        facts: what the sidecar says beside the file's hash; for DICOM with "attack", "told", "eps", "weights".
        keep_headers: whether the patient's and other headers are copied.
    """
    path = root / twin.path
    if path.resolve().is_relative_to(source.resolve()):
        raise InputError(f"expected a folder outside of {source} to write twins to, got {root}; give another --out")
    with whole(path) as part:
        if path.suffix == ".png":
            write_png16(part, stored[twin.slices[0]].astype(np.uint16))
        elif record.get("frames"):
            content = twin_bytes(
                source / twin.path, stored[list(twin.slices)], patient=record["group"], attack=facts["told"],
                key=run_key(facts), keep_headers=keep_headers,
            )  # fmt: skip
            part.write_bytes(content)
        else:
            part.write_bytes(_nifti(source / twin.path, _layout(record).to_file(stored), keep_headers))
    sidecar = {"mark": MARK, "sha256": sha256(path), "source": twin.path, **facts}
    write_json(path.with_name(path.name + ".json"), sidecar)


def run_key(facts: Mapping[str, Any]) -> str:
    """What tells the UIDs of one run from those of another."""
    return digest({name: facts[name] for name in ("attack", "eps", "weights")})


def read_stored(path: Path, record: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
    """Stored values (slices, rows, columns) of an image file of a scan, and its geometry and scale.

    The slices are in the order of `Twin.slices`.

    Raises:
        InputError: the file is broken, or of another shape.
    """
    if path.suffix == ".png":
        pixels = read_png16(path)
        return pixels[None], {"shape": list(pixels.shape), "type": str(pixels.dtype)}
    if record.get("frames"):
        return decoded(path), dict(geometry(path))
    volume = read_nifti(path)
    facts = {
        "shape": list(volume.stored.shape),
        "type": str(volume.stored.dtype.newbyteorder("=")),
        "slope": volume.slope,
        "inter": volume.inter,
        "affine": volume.affine.tolist(),
        "spacing_mm": volume.spacing_mm.tolist(),
    }
    layout = _layout(record)
    if volume.stored.shape != layout.shape:
        raise InputError(f"expected a volume of {layout.shape}, got {volume.stored.shape} in {path}; write it again")
    return np.ascontiguousarray(layout.from_file(volume.stored)), facts


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _layout(record: Mapping[str, Any]) -> Lattice:
    kept = record["lattice"]
    return Lattice(tuple(kept["shape"]), tuple(kept["axes"]), tuple(kept["flips"]))


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
