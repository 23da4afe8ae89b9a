"""nnU-Net's resampling as a linear map along each axis: the library's numbers, with a gradient.

nnU-Net calls `skimage.transform.resize(mode="edge", anti_aliasing=False)`, which is `scipy.ndimage.zoom`: a spline's
prefilter and its samples, both linear in the image. The columns of each map are scipy's results for the unit vectors.
Afterwards skimage clips to the least and greatest input value, since cubic splines overshoot.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ANISOTROPIC = 3  # nnU-Net's threshold of the ratio of spacings, above which it resamples the coarse axis by itself


@dataclass(frozen=True)
class Resampling:
    """Options of nnU-Net's `resample_data_or_seg_to_shape`.

    Attributes:
        order: order of the spline, 0 to 5; where one axis is coarse, of the two others.
        order_z: order of the spline along the coarse axis.
        separate: whether one axis is coarse; None: one is if its spacing is more than three times another's.
    """

    order: int
    order_z: int = 0
    separate: bool | None = None


def resampled_shape(grid: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """The grid with the spacing `target` (mm) and the extent of `grid`, rounded as nnU-Net does."""
    return tuple(round(mm / new_mm * n) for mm, new_mm, n in zip(spacing, target, grid, strict=True))


def resampled(
    x: Float[Tensor, "c *s"],
    grid: Sequence[int],
    spacing: Sequence[float],
    target: Sequence[float],
    options: Resampling,
) -> Float[Tensor, "c *t"]:
    """An image with the spacing `spacing` on another grid, with the spacing `target`; both in mm."""
    before = tuple(x.shape[1:])
    if before == tuple(grid):
        return x
    coarse = coarse_axis(spacing, target, options.separate)
    result = x
    for axis, (n, m) in enumerate(zip(before, grid, strict=True)):
        if n != m and axis != coarse:
            result = _along(result, axis + 1, spline(n, m, options.order))
    if options.order > 1:
        # nnU-Net resamples slices across a coarse axis one by one, so that each is clipped to its own extremes
        axes = tuple(axis for axis in range(1, x.ndim) if coarse is None or axis != coarse + 1)
        result = torch.minimum(torch.maximum(result, x.amin(axes, keepdim=True)), x.amax(axes, keepdim=True))
    if coarse is not None and before[coarse] != grid[coarse]:
        result = _along(result, coarse + 1, sampled(before[coarse], grid[coarse], options.order_z))
    return result


def coarse_axis(spacing: Sequence[float], target: Sequence[float], separate: bool | None) -> int | None:
    """The axis that is resampled by itself, after the others; None if no axis, or more than one, is coarse."""
    anisotropic = next((mm for mm in (spacing, target) if max(mm) / min(mm) > ANISOTROPIC), None)
    if separate is not None:
        anisotropic = spacing if separate else None
    if anisotropic is None:
        return None
    coarse = [axis for axis, mm in enumerate(anisotropic) if mm == max(anisotropic)]
    return coarse[0] if len(coarse) == 1 else None


@functools.lru_cache(maxsize=64)
def spline(n: int, m: int, order: int) -> Float[Tensor, "m n"]:
    """The matrix of `scipy.ndimage.zoom` with edge padding, from `n` voxels to `m`."""
    from scipy import ndimage

    columns = [ndimage.zoom(unit, m / n, order=order, mode="nearest", grid_mode=True) for unit in np.eye(n)]
    return torch.from_numpy(np.stack(columns, 1))


@functools.lru_cache(maxsize=64)
def sampled(n: int, m: int, order: int) -> Float[Tensor, "m n"]:
    """The matrix of `scipy.ndimage.map_coordinates` along a coarse axis, from `n` voxels to `m`."""
    from scipy import ndimage

    coordinates = n / m * (np.arange(m) + 0.5) - 0.5
    columns = [ndimage.map_coordinates(unit, [coordinates], order=order, mode="nearest") for unit in np.eye(n)]
    return torch.from_numpy(np.stack(columns, 1))


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    return (x.movedim(axis, -1) @ matrix.to(x).T).movedim(-1, axis)
