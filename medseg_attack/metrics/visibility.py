"""Measures of how visible a change is: structural similarity, peak signal-to-noise ratio, the change in noise units.

All are of the intensity window as it is shown, [0, 1], and of the values that the scan's file holds.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg_attack.numerics.slabs import SLAB, sum_of_slabs
from medseg_attack.types import Image, Mask

AIR = 0.1  # of the window: what is brighter belongs to the body
SIDE, WIDTH = 11, 1.5  # of the Gaussian window of SSIM in pixels: its side, its standard deviation
STABLE = (0.01**2, 0.03**2)  # the constants of SSIM for a range of 1


class Visibility(NamedTuple):
    """How visible the change of one image is; the names are columns of rows.

    Attributes:
        ssim: structural similarity, mean over channels, slices and pixels; 1 for equal images. NaN where a side has
            fewer than 11 pixels.
        ssim_body: the same over pixels of the body alone; NaN where there is none. Air is flat, so that a change of
            it that nobody sees lowers SSIM more than one of tissue that everybody does.
        ssim_min: the least mean of a slice.
        psnr: peak signal-to-noise ratio in dB; infinite for equal images.
        noise_units: root mean square of the change as a multiple of the image's own noise; NaN where it has none.
    """

    ssim: float
    ssim_body: float
    ssim_min: float
    psnr: float
    noise_units: float


def body(image: Image) -> Mask:
    """The pixels (b, 1, *s) of the body: those brighter than air in any channel."""
    return (image > AIR).any(1, keepdim=True)


def visibility(changed: Image, image: Image, noise: Sequence[float]) -> list[Visibility]:
    """How visible the change of each image is, whatever stands beside it in the batch.

    Args:
        changed: images in [0, 1].
        image: the untouched ones.
        noise: standard deviation of the noise of each, from `numerics.noise.noise_of`.
    """
    pairs = list(zip(changed, image, strict=True))
    squares = [sum_of_slabs(lambda x, x0: (x - x0).double().square().sum(), x[None], x0[None]) for x, x0 in pairs]
    mses: list[float] = (torch.stack(squares) / image[0].numel()).tolist()
    slices = _similarity(changed, image)
    return [_summary(*facts) for facts in zip(mses, slices, noise, strict=True)]


class _Slice(NamedTuple):
    """Sums of the structural similarity over the pixels of a slice, and over those of the body, with their numbers."""

    total: float
    n: float
    in_body: float
    n_in_body: float


def _similarity(changed: Image, image: Image) -> list[list[_Slice]]:
    """The slices of each image; none where they have fewer pixels than a window."""
    rows, columns = image.shape[-2:]
    if min(rows, columns) < SIDE:
        return [[] for _ in image]
    first, second = (
        values.reshape(*values.shape[:2], -1, rows, columns).transpose(1, 2).flatten(0, 1)
        for values in (changed, image)
    )
    # a CPU is fastest with what its cache holds, a GPU with few large operations
    together = 1 if image.device.type == "cpu" else max(1, SLAB // first[0].numel())
    edge = SIDE // 2
    # one tensor for all slices: small ones that stay would leave the memory between them in pieces
    sums = first.new_empty((len(first), len(_Slice._fields)), dtype=torch.float64)
    for start in range(0, len(first), together):
        pair = first[start : start + together], second[start : start + together]
        similar = ssim_map(*pair).mean(1)  # over channels
        inner = body(pair[1])[:, 0, edge:-edge, edge:-edge]
        in_body = torch.where(inner, similar, 0).flatten(1).sum(1)
        n = torch.full_like(in_body, similar[0].numel())
        of_part = torch.stack((similar.flatten(1).sum(1), n, in_body, inner.flatten(1).sum(1)), 1)
        sums[start : start + together] = of_part
    of_image = sums.view(len(image), -1, len(_Slice._fields))
    return [[_Slice(*slice_) for slice_ in slices] for slices in of_image.tolist()]


def _summary(mse: float, slices: Sequence[_Slice], noise: float) -> Visibility:
    psnr = -10 * math.log10(mse) if mse > 0 else math.inf
    noise_units = math.sqrt(mse) / noise if noise > 0 else math.nan
    if not slices:
        return Visibility(math.nan, math.nan, math.nan, psnr, noise_units)
    means = [slice_.total / slice_.n for slice_ in slices]
    n_in_body = sum(slice_.n_in_body for slice_ in slices)
    in_body = sum(slice_.in_body for slice_ in slices) / n_in_body if n_in_body else math.nan
    return Visibility(sum(means) / len(means), in_body, min(means), psnr, noise_units)


def ssim_map(first: Image, second: Image) -> Tensor:
    """Structural similarity of each pixel in plane whose window lies inside the image (Wang et al. 2004).

    Windows are Gaussian, 11 x 11 pixels with a standard deviation of 1.5; constants .01 and .03 of a range of 1.

    Returns:
        (b, c, *s), rows and columns shorter by 10.
    """
    first, second = first.double(), second.double()  # variances are differences of nearly equal numbers
    means = [_windowed(values) for values in (first, second, first * first, second * second, first * second)]
    mean_1, mean_2, square_1, square_2, product = means
    var_1, var_2, covariance = square_1 - mean_1**2, square_2 - mean_2**2, product - mean_1 * mean_2
    c1, c2 = STABLE
    luminance = (2 * mean_1 * mean_2 + c1) / (mean_1**2 + mean_2**2 + c1)
    return luminance * (2 * covariance + c2) / (var_1 + var_2 + c2)


def _windowed(values: Tensor) -> Tensor:
    """The mean of each whole window, weighted by a Gaussian."""
    offset = torch.arange(SIDE, dtype=values.dtype, device=values.device) - SIDE // 2
    weights = torch.exp(-0.5 * (offset / WIDTH).square())
    weights = weights / weights.sum()
    planes = values.reshape(-1, 1, *values.shape[-2:])
    planes = F.conv2d(F.conv2d(planes, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return planes.view(*values.shape[:-2], *planes.shape[-2:])
