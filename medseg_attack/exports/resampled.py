"""Perturbed scans on another grid than their source's: one NIfTI file each, whatever the source's format.

The grid has the spacing of the prepared data and no place in the patient.
"""

import gzip
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from medseg_attack.data.formats.scan import Array, Lattice
from medseg_attack.data.prepared.record import ScanRecord

SUFFIX = ".nii.gz"


def is_resampled(record: ScanRecord) -> bool:
    """Whether there is no way from a scan's array back to the source's files."""
    return record.lattice is None and not record.frames


def layout_of(record: ScanRecord) -> Lattice:
    """The way to the array of the scan's file: the source's own, or columns, rows and slices."""
    return record.lattice or Lattice(record.shape[::-1], (2, 1, 0))


def resampled_geometry(record: ScanRecord) -> dict[str, Any]:
    """The geometry and scale of the file of a resampled scan, as `copies.read_stored` reads them."""
    slope, inter = _scale(record)
    return {
        "shape": [*record.shape[::-1], *([record.channels] if record.channels > 1 else [])],
        "type": record.stored_type,
        "slope": slope,
        "inter": inter,
        "affine": _affine(record).tolist(),
        "spacing_mm": np.abs(np.diag(_affine(record)))[:3].tolist(),
    }


def resampled_nifti(volumes: Array, record: ScanRecord, mark: str) -> bytes:
    """The file of a resampled scan, compressed.

    Args:
        volumes: stored values, (columns, rows, slices, channels).
        mark: the text of `descrip`.
    """
    image: Any = nibabel.Nifti1Image(volumes if record.channels > 1 else volumes[..., 0], _affine(record))
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = mark.encode()
    return gzip.compress(with_scale(image, *_scale(record)), mtime=0)


def with_scale(image: Any, slope: float, inter: float) -> bytes:
    """The bytes of a NIfTI file that keeps the image's stored values and says this scale.

    nibabel scales what it writes; the stored values are to stay, so the scale is put in afterwards.
    """
    content = bytearray(image.to_bytes())
    size = int(image.header.sizeof_hdr)
    header = type(image.header)(bytes(content[:size]))
    header["scl_slope"], header["scl_inter"] = slope, inter
    content[:size] = header.binaryblock
    return bytes(content)


def _scale(record: ScanRecord) -> tuple[float, float]:
    """The scale of a whole scan as float32; none where slices or channels have scales of their own."""
    if isinstance(record.slope, tuple | None) or isinstance(record.inter, tuple | None):
        return 1.0, 0.0
    return float(np.float32(record.slope)), float(np.float32(record.inter))


def _affine(record: ScanRecord) -> NDArray[np.float64]:
    """Voxel to mm: columns run to the left and rows to the back, as axial slices are shown. Pictures are 1 mm thick."""
    slices, rows, columns = (mm or 1.0 for mm in record.spacing_mm)
    return np.diag([-columns, -rows, slices, 1]).astype(np.float32).astype(np.float64)
