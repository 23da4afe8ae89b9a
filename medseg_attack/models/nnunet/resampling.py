"""nnU-Net's resampling as what it is, a linear map along each axis: the library's numbers, with a gradient.

nnU-Net calls `skimage.transform.resize(mode="edge", anti_aliasing=False)`, which is `scipy.ndimage.zoom`: a spline's
prefilter and its samples, both linear in the image. Each map is what scipy makes of the unit vectors. Afterwards
skimage cuts at the least and greatest input value, since cubic splines overshoot.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ANISOTROPIC = 3  # times the other spacings: nnU-Net's threshold for a coarse axis of its own


@dataclass(frozen=True)
class Resampling:
    """How `resample_data_or_seg_to_shape` of nnU-Net resamples.

    Attributes:
        order: of the spline; of the two fine axes where the third is coarse.
        order_z: of the coarse axis.
        separate: whether there is a coarse axis; None: if its spacing is more than thrice another's.
    """

    order: int
    order_z: int = 0
    separate: bool | None = None


def shape_at(grid: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """The grid that has the spacing `target` and the extent of `grid`, rounded as nnU-Net does."""
    return tuple(round(mm / to * n) for mm, to, n in zip(spacing, target, grid, strict=True))


def resampled(
    x: Float[Tensor, "c *s"], grid: Sequence[int], spacing: Sequence[float], target: Sequence[float], how: Resampling
) -> Float[Tensor, "c *t"]:
    """`x` of that `spacing` on another grid, of the spacing `target`."""
    before = tuple(x.shape[1:])
    if before == tuple(grid):
        return x
    coarse = coarse_axis(spacing, target, how.separate)
    made = x
    for axis, (n, m) in enumerate(zip(before, grid, strict=True)):
        if n != m and axis != coarse:
            made = _along(made, axis + 1, spline(n, m, how.order))
    if how.order > 1:
        # of a coarse axis nnU-Net resamples slice by slice, so that each is cut at its own extremes
        axes = tuple(axis for axis in range(1, x.ndim) if coarse is None or axis != coarse + 1)
        made = torch.minimum(torch.maximum(made, x.amin(axes, keepdim=True)), x.amax(axes, keepdim=True))
    if coarse is not None and before[coarse] != grid[coarse]:
        made = _along(made, coarse + 1, sampled(before[coarse], grid[coarse], how.order_z))
    return made


def coarse_axis(spacing: Sequence[float], target: Sequence[float], separate: bool | None) -> int | None:
    """The axis that is resampled by itself, after the others; None if there is none."""
    by = next((mm for mm in (spacing, target) if max(mm) / min(mm) > ANISOTROPIC), None)
    if separate is not None:
        by = spacing if separate else None
    if by is None:
        return None
    lowest = [axis for axis, mm in enumerate(by) if mm == max(by)]
    return lowest[0] if len(lowest) == 1 else None


@functools.lru_cache(maxsize=64)
def spline(n: int, m: int, order: int) -> Float[Tensor, "m n"]:
    """What `scipy.ndimage.zoom` with edge padding does from `n` voxels to `m`."""
    from scipy import ndimage

    columns = [ndimage.zoom(unit, m / n, order=order, mode="nearest", grid_mode=True) for unit in np.eye(n)]
    return torch.from_numpy(np.stack(columns, 1))


@functools.lru_cache(maxsize=64)
def sampled(n: int, m: int, order: int) -> Float[Tensor, "m n"]:
    """What `scipy.ndimage.map_coordinates` does along a coarse axis."""
    from scipy import ndimage

    where = n / m * (np.arange(m) + 0.5) - 0.5
    columns = [ndimage.map_coordinates(unit, [where], order=order, mode="nearest") for unit in np.eye(n)]
    return torch.from_numpy(np.stack(columns, 1))


def _along(x: Tensor, axis: int, of: Tensor) -> Tensor:
    return (x.movedim(axis, -1) @ of.to(x).T).movedim(-1, axis)
