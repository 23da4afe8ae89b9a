"""The header of a NIfTI file: every field that changes values, geometry or meaning is used, refused or noted.

`docs/scans.md` has the table of all fields.
"""

import gzip
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from medseg_attack.errors import InputError, refusing
from medseg_attack.storage.paths import require_file

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what a header lacks is told here, in a sentence

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # the axis between slices: 0 right, 1 anterior, 2 head
ALIKE = 0.01  # relative; spacings nearer than this are one spacing that was rounded
_COARSE = 1.5  # spacing beside the next largest, from which on it is that of slices
_SHORT = 0.25  # length beside the next smallest, up to which an axis is that of slices
_ROUNDED = 1e-3  # relative; pixdim and affine hold one spacing in different precision
_SAME_PLACE = 0.1  # of a voxel
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # by the code of the unit: unknown, metre, mm, micrometre
_UNITS = {0: "no unit", 1: "metres", 2: "millimetres", 3: "micrometres"}
_VECTORS = range(1004, 1011)  # intents whose values are parts of matrices, displacements or points
_LABELS = 1002


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """The meaning of a header.

    Attributes:
        shape: of the array.
        affine: voxel to mm, 4 x 4.
        spacing_mm: of the three axes.
        slope, inter: of stored values.
        unit: of lengths, as the file has it; "no unit" if it does not say.
        notes: what was assumed or decided between fields that contradict each other, a phrase about the scan each.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    spacing_mm: NDArray[np.float64]
    slope: float
    inter: float
    unit: str
    notes: tuple[str, ...]

    @property
    def channels(self) -> int:
        """Number of channels, along the axes after the third."""
        return int(np.prod(self.shape[3:]))

    @property
    def acquired(self) -> str:
        """The plane in which the slices seem to have been acquired; "" where spacing and lengths do not tell.

        An axis of length 1 is that between slices; else the spacing tells, of which two are alike or one is much
        larger; else one axis is much shorter than the others.
        """
        axis = _slice_axis(self.spacing_mm, self.shape[:3])
        return "" if axis is None else plane_of(int(io_orientation(self.affine)[axis, 0]))


def plane_of(world: int) -> str:
    """The name of a plane by the axis between its slices."""
    return next(plane for plane, axis in PLANES.items() if axis == world)


def _slice_axis(spacing: NDArray[np.float64], lengths: tuple[int, ...]) -> int | None:
    if sum(n == 1 for n in lengths) == 1:
        return lengths.index(1)
    for axis in range(3):
        low, high = sorted(np.delete(spacing, axis))
        alike = high / low < 1 + ALIKE
        if (alike and not low / (1 + ALIKE) < spacing[axis] < high * (1 + ALIKE)) or spacing[axis] > _COARSE * high:
            return axis
    if spacing.max() / spacing.min() < 1 + ALIKE:
        for axis in range(3):
            if lengths[axis] <= _SHORT * min(np.delete(lengths, axis)):
                return axis
    return None


def load_nifti(path: Path) -> tuple[Any, NiftiHeader]:
    """nibabel's image, whose pixels are not read yet, and its header.

    Raises:
        InputError: it is not a NIfTI file, or a field has a value that is not known or contradicts another.
    """
    require_file(path, "a NIfTI file")
    with refusing(f"a whole NIfTI file in {path}", "copy it again", passing=(InputError, MemoryError)):
        file: Any = nibabel.load(path)
        raw = _raw(file, path)
        _check(file, raw, path)
        return file, _meaning(file, raw, path)


def is_gzipped(path: Path) -> bool:
    """Whether a NIfTI file is compressed, by its name."""
    return path.suffix.lower() == ".gz"


def _raw(file: Any, path: Path) -> Any:
    """The header as it is in the file: nibabel's own has fields that were corrected, or emptied."""
    size = file.header.template_dtype.itemsize
    with gzip.open(path) if is_gzipped(path) else path.open("rb") as stream:
        return type(file.header)(stream.read(size), check=False)


def _check(file: Any, raw: Any, path: Path) -> None:
    """Refuses values with which nothing in the file can be trusted, or that are no intensities."""
    if not isinstance(file, nibabel.Nifti1Image) or not bytes(raw["magic"].item()).startswith((b"n+1", b"n+2")):
        raise InputError(
            f"expected the magic n+1 or n+2 of a single NIfTI file in {path}, got {_text(file, raw)}; convert the file"
        )
    size = file.header.template_dtype.itemsize
    if int(raw["sizeof_hdr"]) != size:
        raise InputError(f"sizeof_hdr: expected {size}, got {int(raw['sizeof_hdr'])} in {path}; repair the header")
    if min(file.shape, default=0) < 1:
        raise InputError(f"dim: expected lengths of 1 or more, got {list(file.shape)} in {path}; repair the header")
    least, offset = file.header.single_vox_offset, float(raw["vox_offset"])
    if not offset >= least:  # NaN, too
        raise InputError(f"vox_offset: expected {least} or more, got {offset:g} in {path}; repair the header")
    kind = file.get_data_dtype()
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise InputError(
            f"datatype: expected numbers of up to 64 bits, got {'colours' if kind.names else kind} in {path}; convert "
            "the file to grey levels"
        )
    bits = kind.itemsize * 8
    if int(raw["bitpix"]) != bits:
        raise InputError(
            f"bitpix: expected {bits} for the datatype {kind}, got {int(raw['bitpix'])} in {path}; repair the header"
        )
    if int(raw["intent_code"]) in _VECTORS:
        raise InputError(
            f"intent_code: expected intensities, got {int(raw['intent_code'])} (vectors or matrices) in {path}; leave "
            "the file out"
        )
    if int(raw["xyzt_units"]) % 8 not in _MM:
        raise InputError(
            f"xyzt_units: expected metres, millimetres or micrometres, got code {int(raw['xyzt_units']) % 8} in "
            f"{path}; repair the header"
        )
    qfac = float(raw["pixdim"][0])
    if int(raw["qform_code"]) > 0 and int(raw["sform_code"]) <= 0 and qfac not in (-1, 0, 1):
        raise InputError(f"pixdim[0]: expected -1 or 1 as the qform's qfac, got {qfac:g} in {path}; repair the header")


def _text(file: Any, raw: Any) -> str:
    if not isinstance(file, nibabel.Nifti1Image):
        return type(file).__name__
    return repr(bytes(raw["magic"].item()).rstrip(b"\0").decode("ascii", "replace"))


def _meaning(file: Any, raw: Any, path: Path) -> NiftiHeader:
    code = int(raw["xyzt_units"]) % 8
    notes = [] if code else ["no unit of length, mm are assumed"]
    affine = np.array(file.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or np.isnan(io_orientation(affine)).any():
        raise InputError(f"expected an affine that maps voxels to mm in {path}, got {affine.tolist()}; repair it")
    spacing = _spacing(affine, np.abs(np.array(raw["pixdim"][1:4], dtype=np.float64)), notes, path)
    notes += _places(file, raw, affine)
    slope, inter = float(raw["scl_slope"]), float(raw["scl_inter"])
    if not np.isfinite(slope):
        notes.append("a scl_slope that is no number, values are taken as they are stored")
    elif slope == 0 and inter:
        notes.append("a scl_inter without a scl_slope, which is not used")
    if int(raw["intent_code"]) == _LABELS:
        notes.append("the intent of a label map")
    affine[:3] *= _MM[code]
    shape = tuple(int(n) for n in file.shape)
    scale = float(file.dataobj.slope), float(file.dataobj.inter)
    return NiftiHeader(shape, affine, spacing * _MM[code], *scale, _UNITS[code], tuple(notes))


def _spacing(
    affine: NDArray[np.float64], pixdim: NDArray[np.float64], notes: list[str], path: Path
) -> NDArray[np.float64]:
    """Lengths of voxels: those of the affine, unless it has none of its own, as those of ACDC."""
    lengths: NDArray[np.float64] = voxel_sizes(affine)
    valid = bool((np.isfinite(pixdim) & (pixdim > 0)).all())
    if valid and np.allclose(lengths, pixdim, rtol=_ROUNDED, atol=0):
        return pixdim
    words = {name: " x ".join(f"{n:g}" for n in values) for name, values in (("a", lengths), ("p", pixdim))}
    if not np.allclose(lengths, 1, rtol=_ROUNDED, atol=0):
        notes.append(f"a spacing of {words['a']} by the affine, which is taken, and of {words['p']} by pixdim")
        return lengths
    if not valid:
        raise InputError(f"spacing_mm: expected positive lengths, got {pixdim.tolist()} in {path}; repair pixdim")
    notes.append("an affine without a scale, the spacing is pixdim's")
    return pixdim


def _places(file: Any, raw: Any, affine: NDArray[np.float64]) -> list[str]:
    """Notes on the two affines of a header."""
    by_sform, by_qform = int(raw["sform_code"]) > 0, int(raw["qform_code"]) > 0
    if not by_sform and not by_qform:
        return ["no orientation (sform_code and qform_code are 0), axes are taken for left, anterior and head"]
    if not (by_sform and by_qform):
        return []
    qform = file.header.get_qform()
    corners = np.array(np.meshgrid(*((0, n - 1) for n in file.shape[:3]), [1])).reshape(4, -1)
    apart = np.linalg.norm(((affine - qform) @ corners)[:3], axis=0).max()
    if apart <= _SAME_PLACE * voxel_sizes(affine).min():
        return []
    return ["a sform, which is taken, and a qform elsewhere"]
