"""Measures of how visible a change is: structural similarity, peak signal-to-noise ratio, the change in noise units.

All are of the intensity window as it is shown, [0, 1], and of the values that the scan's file holds.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medseg_attack.numerics.slabs import sum_of_slabs
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
    return [_of_one(*pair) for pair in zip(changed, image, noise, strict=True)]


def _of_one(changed: Float[Tensor, "c *s"], image: Float[Tensor, "c *s"], noise: float) -> Visibility:
    squares = sum_of_slabs(lambda x, x0: (x - x0).double().square().sum(), changed[None], image[None])
    mse = squares.item() / image.numel()
    psnr = -10 * math.log10(mse) if mse > 0 else math.inf
    noise_units = math.sqrt(mse) / noise if noise > 0 else math.nan
    if min(image.shape[-2:]) < SIDE:
        return Visibility(math.nan, math.nan, math.nan, psnr, noise_units)
    edge, rows, columns = SIDE // 2, *image.shape[-2:]
    means, sum_in_body, n_in_body = [], 0.0, 0
    slices = [values.reshape(len(values), -1, rows, columns).unbind(1) for values in (changed, image)]
    for pair in zip(*slices, strict=True):
        similar = ssim_map(*(slice_[None] for slice_ in pair))[0].mean(0)  # over channels; a slice at a time
        inner = body(pair[1][None])[0, 0, edge:-edge, edge:-edge]
        means.append(similar.mean().item())
        sum_in_body += similar[inner].sum().item()
        n_in_body += int(inner.sum())
    in_body = sum_in_body / n_in_body if n_in_body else math.nan
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
