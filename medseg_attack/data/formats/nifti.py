"""NIfTI volumes through nibabel: stored values as they are, axes in the order of slices, rows, columns.

As radiologists look at them, rows run from anterior to posterior or from head to foot, columns from the patient's
right to the left or from anterior to posterior.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from medseg_attack.data.formats.label_values import LabelValues, whole
from medseg_attack.data.formats.memory import gunzipped, require_room
from medseg_attack.data.formats.nifti_header import PLANES, NiftiHeader, is_gzipped, load_nifti
from medseg_attack.data.formats.scan import Array, Lattice, Scan
from medseg_attack.errors import InputError, refusing
from medseg_attack.types import alike

SUFFIXES = (".nii.gz", ".nii")
EXACT = 2**53  # greatest whole number up to which float64, in which intensities are computed, holds each one
PIECE = 2**18  # bytes that are read at a time
_SAME_PLACE = 0.1  # of the smallest voxel edge: headers round the affine


@dataclass(frozen=True, eq=False)
class Nifti:
    """A volume in the file's own order of axes, channels (if any) last: intensity is `stored * slope + inter`."""

    stored: Array
    header: NiftiHeader

    @property
    def values(self) -> Array:
        """The intensities."""
        values: Array = self.stored * np.float64(self.header.slope) + self.header.inter
        return values

    @property
    def grid(self) -> tuple[int, ...]:
        """The shape without channels."""
        return self.stored.shape[:3]

    @property
    def channels(self) -> Array:
        """`stored` with an axis of channels before the others."""
        return np.moveaxis(self.stored, 3, 0) if self.stored.ndim == 4 else self.stored[None]


def suffix_of(name: str) -> str:
    """The ending of a NIfTI file as its name has it, in any case; "" of other names.

    >>> suffix_of("a.nii.gz"), suffix_of("A.NII"), suffix_of("a.png")
    ('.nii.gz', '.NII', '')
    """
    return next((name[-len(suffix) :] for suffix in SUFFIXES if name.lower().endswith(suffix)), "")


def stem(path: Path) -> str | None:
    """The name without `.nii` or `.nii.gz`, in any case; None for other and for hidden files."""
    suffix = suffix_of(path.name)
    return path.name.removesuffix(suffix) if suffix and not path.name.startswith(".") else None


def read_nifti(path: Path, *, several: bool = False) -> Nifti:
    """The volume with its stored values and its scale.

    Args:
        several: whether it may hold several channels along its last axis.

    Raises:
        InputError: it was cut off, is not NIfTI, or is not in three dimensions and one channel.
    """
    file, header = load_nifti(path)
    require_room(path, header.shape)
    with refusing(f"a whole NIfTI file in {path}", "copy it again", passing=(InputError, MemoryError)):
        stored = _unscaled(file, path)
    shape = stored.shape
    if stored.ndim > 3:  # axes of length 1 between the voxels and the channels say nothing
        stored = stored.reshape(shape[:3] + tuple(n for n in shape[3:] if n > 1))
    if stored.ndim not in ((3, 4) if several else (3,)) or stored.dtype.kind not in "iuf" or stored.size == 0:
        raise InputError(
            f"expected three dimensions{'' if several else ' and one channel'}, got {stored.dtype} of shape {shape} "
            f"in {path}; write one channel to a file of its own"
        )
    if stored.dtype.kind in "iu" and stored.dtype.itemsize == 8 and max(-int(stored.min()), int(stored.max())) > EXACT:
        raise InputError(
            f"expected whole numbers up to {EXACT:,}, which floats of 64 bits hold, got {stored.min()} to "
            f"{stored.max()} in {path}; store smaller numbers"
        )
    return Nifti(stored, header)


def _unscaled(file: Any, path: Path) -> Array:
    """The stored values; of a compressed file after a look at its checksum, which nibabel leaves out."""
    kind = file.get_data_dtype()
    least = kind.itemsize * math.prod(file.shape) // max(file.shape)  # bytes of a layer: less is padding
    values: Array
    if is_gzipped(path):
        with gunzipped(path) as stream:
            values = _read_array(stream, file.dataobj.offset, kind, file.shape)
            n_more = len(stream.read(least))
    else:
        values = np.asanyarray(file.dataobj.get_unscaled())
        n_more = path.stat().st_size - file.dataobj.offset - values.nbytes
    if n_more >= least:  # the lengths would then cut rows elsewhere than whoever wrote them
        raise InputError(
            f"dim: expected lengths of all voxels in {path}, got {' x '.join(map(str, file.shape))}, after which more "
            "values follow; repair the header"
        )
    return values


def _read_array(stream: BufferedIOBase, offset: int, kind: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """The values that follow in a file, the first axis the fastest; read in pieces, so that they are in memory once.

    Raises:
        EOFError: it has fewer.
    """
    values = np.empty(math.prod(shape), kind)
    room = values.view(np.uint8).data
    stream.seek(offset)
    while room:
        if not (n := stream.readinto(room[:PIECE])):
            raise EOFError(f"{len(room):,} bytes too few")
        room = room[n:]
    return values.reshape(shape, order="F")


def read_pair(
    name: str,
    images: Path | tuple[Path, ...],
    mask: Path,
    values: LabelValues,
    *,
    plane: str = "",
    unit: str = "",
    several: bool = False,
) -> Scan:
    """An image and its mask as the scan `name`.

    Args:
        images: one file, or one for each channel.
        values: which value of the mask is which class.
        plane: axial, coronal or sagittal; "": that in which the scan seems to have been acquired.
        several: whether a file alone holds several channels.

    Raises:
        InputError: one cannot be read, they are not on one grid, or the mask has a value that is not in
            `values`.
    """
    paths = images if isinstance(images, tuple) else (images,)
    stored, headers, lattice, spacing = _channels(paths, plane, several)  # as files have them, they are gone from here
    truth = read_nifti(mask)
    _check_grid(headers[0], truth.header, paths[0], mask, "image and mask")
    labels, moved = _labels(truth, values, mask, lattice)
    case_ids = tuple(f"{name}_slice_{i:03d}" for i in range(len(labels)))
    slope, inter = alike([header.slope for header in headers]), alike([header.inter for header in headers])
    notes = ("labels near to whole numbers, which are taken for these",) if moved else ()
    return Scan(stored, labels, case_ids, spacing, slope, inter, unit, lattice, headers[0].affine, notes=notes)


def _channels(
    paths: Sequence[Path], plane: str, several: bool
) -> tuple[Array, list[NiftiHeader], Lattice, tuple[float, float, float]]:
    """The stored values of an image in slices, the headers of its files, and the `layout` of the slices."""
    first, *others = parts = [read_nifti(path, several=several) for path in paths]
    for part, path in zip(others, paths[1:], strict=True):
        _check_grid(first.header, part.header, paths[0], path, "channels")
        if part.stored.dtype != first.stored.dtype:
            raise InputError(
                f"expected channels of one stored type, got {first.stored.dtype} in {paths[0]} and "
                f"{part.stored.dtype} in {path}; write them in one type"
            )
    lattice, spacing = layout(first, plane)
    channels = [lattice.from_file(channel) for part in parts for channel in part.channels]
    stored = np.stack(channels) if len(channels) > 1 else np.ascontiguousarray(channels[0])
    return stored, [part.header for part in parts], lattice, spacing


def _labels(truth: Nifti, values: LabelValues, mask: Path, lattice: Lattice) -> tuple[Array, bool]:
    """The labels of a mask in slices, and whether values near to whole numbers were taken for these.

    Raises:
        InputError: a value is of no class.
    """
    labels = np.empty([truth.grid[axis] for axis in lattice.axes], values.kind)
    in_file, any_moved = lattice.to_file(labels), False
    try:
        for layer in range(truth.grid[-1]):  # as the file has them
            marks, moved = whole(replace(truth, stored=truth.stored[..., layer]).values)
            in_file[..., layer] = values.labels(marks, mask)
            any_moved |= moved
    except InputError:
        values.labels(whole(truth.values)[0], mask)  # which counts the wrong voxels of all layers
        raise
    return labels, any_moved


def label_values(path: Path) -> NDArray[Any]:
    """The distinct values of a mask, sorted; those near to a whole number are that number."""
    mask = read_nifti(path)
    stored = np.unique(np.concatenate([np.unique(mask.stored[..., layer]) for layer in range(mask.grid[-1])]))
    values, _ = whole(stored * np.float64(mask.header.slope) + mask.header.inter)
    return np.unique(values)


def layout(volume: Nifti, plane: str = "") -> tuple[Lattice, tuple[float, float, float]]:
    """Slices, rows and columns of a volume, and the mm between them.

    Args:
        plane: axial, coronal or sagittal; "": that in which the scan seems to have been acquired, or axial.
    """
    directions = io_orientation(volume.header.affine)
    file_axis = {int(world): axis for axis, (world, _) in enumerate(directions)}  # world: 0 right, 1 anterior, 2 head
    world = PLANES[plane or volume.header.acquired or "axial"]
    through = file_axis[world]
    in_plane = [w for w in (2, 1, 0) if w != world]  # rows: head before anterior; columns: what is left
    axes = (through, file_axis[in_plane[0]], file_axis[in_plane[1]])
    # towards left, posterior and head, but rows of sagittal and coronal slices go down from the head
    to_plus = [world == 2, False, False]
    flips = tuple(bool((directions[axis, 1] > 0) != up) for axis, up in zip(axes, to_plus, strict=True))
    mm = tuple(float(volume.header.spacing_mm[axis]) for axis in axes)
    return Lattice(volume.grid, axes, (flips[0], flips[1], flips[2])), (mm[0], mm[1], mm[2])


def _check_grid(scan: NiftiHeader, other: NiftiHeader, path: Path, of_other: Path, what: str) -> None:
    grid, of_other_grid = scan.shape[:3], other.shape[:3]
    if grid != of_other_grid:
        raise InputError(
            f"expected {what} of one shape, got {grid} in {path} "
            f"and {of_other_grid} in {of_other}; give files of one grid"
        )
    corners = np.array(np.meshgrid(*((0, n - 1) for n in grid), [1])).reshape(4, -1)
    apart = np.linalg.norm(((scan.affine - other.affine) @ corners)[:3], axis=0).max()
    units = scan.unit, other.unit
    if not apart <= _SAME_PLACE * voxel_sizes(scan.affine).min():
        if units[0] != units[1]:
            raise InputError(
                f"xyzt_units: expected {what} in one unit of length, got {units[0]} in {path} and {units[1]} in "
                f"{of_other}, by which they are {apart:.3g} mm apart; repair the header of one"
            )
        raise InputError(
            f"expected {what} in one place, got affines that are {apart:.3g} mm apart "
            f"in {path} and {of_other}; resample the second onto the first"
        )
