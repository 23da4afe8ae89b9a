"""Neighbourhoods of pixels: shifted copies of an image, mirrored at its border, along all of its axes."""

from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.types import Image


def mirrored(image: Image, width: int) -> Tensor:
    """The image with `width` pixels more on every side, mirrored at its border, as often as it takes."""
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        period = max(2 * (n - 1), 1)
        place = torch.arange(-width, n + width, device=image.device) % period
        image = image.index_select(axis, torch.where(place < n, place, period - place))
    return image


def neighbours(image: Image, size: int) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Every offset of a window of `size` pixels a side, and the image shifted by it."""
    axes, half_width = image.ndim - 2, size // 2
    padded = mirrored(image, half_width)
    for offset in product(range(size), repeat=axes):
        window = tuple(slice(start, start + n) for start, n in zip(offset, image.shape[2:], strict=True))
        yield tuple(start - half_width for start in offset), padded[(slice(None), slice(None), *window)]


def box_mean(image: Image, size: int) -> Image:
    """The mean over windows of `size` pixels a side."""
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[image.ndim - 2]
    result: Tensor = pool(mirrored(image, size // 2), size, stride=1)
    return result


def gaussian_filter(image: Image, sigma: float) -> Image:
    """The image convolved with a Gaussian, mirrored at the border.

    Args:
        sigma: standard deviation in pixels.
    """
    half_width = round(4 * sigma)
    offsets = torch.arange(-half_width, half_width + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    return convolved(mirrored(image, half_width), kernel / kernel.sum())


def convolved(x: Tensor, kernel: Float[Tensor, "n"], padding: int = 0) -> Tensor:
    """Every channel convolved along each spatial axis in turn, with `padding` zeros at either end of an axis."""
    for axis in range(2, x.ndim):
        lines = x.movedim(axis, -1)
        flat = F.conv1d(lines.reshape(-1, 1, lines.shape[-1]), kernel.view(1, 1, -1), padding=padding)
        x = flat.view(*lines.shape[:-1], -1).movedim(-1, axis)
    return x


def require_odd(name: str, **sizes: int) -> None:
    """Refuses a window that has no middle.

    Raises:
        InputError: a size is even, or below 1.
    """
    for field, size in sizes.items():
        if size < 1 or size % 2 == 0:
            raise InputError(
                f"expected {field} of {name} to be an odd number of pixels, got {size}; "
                f"write {field}={max(size, 0) // 2 * 2 + 1}"
            )
