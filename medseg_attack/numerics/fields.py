"""Fields on a grid from numbers of another basis: splines, Legendre polynomials, cosines, coarse grids; and blurs."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medseg_attack.numerics.flows import pixel_indices
from medseg_attack.numerics.neighbourhoods import convolved
from medseg_attack.types import Image

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def zeros(image: Image, side: int) -> Tensor:
    """A change of nothing, (b, c, side, ...), at most as fine as the image; with `side` 0 as fine as the image."""
    return image.new_zeros(*image.shape[:2], *(min(side or n, n) for n in image.shape[2:]))


def stretched(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Images or additive changes of them on another grid, linear between their values, so that none grows.

    Args:
        x: (b, c, *p).
        grid: the spatial shape of the result.
    """
    if tuple(x.shape[2:]) == grid:
        return x
    return F.interpolate(x, grid, mode=MODES[len(grid)], align_corners=False)


def blurred(x: Image, width: int) -> Image:
    """Every channel convolved with a Gaussian of `width` pixels, three standard deviations to a side, zeros outside.

    Args:
        width: side of the kernel in pixels, odd.
    """
    offset = torch.arange(width, dtype=x.dtype, device=x.device) - width // 2
    kernel = torch.exp(-0.5 * (offset * 6 / max(width - 1, 1)).square())
    return convolved(x, kernel / kernel.sum(), padding=width // 2)


def smooth(weights: Float[Tensor, "b c *p"], grid: tuple[int, ...]) -> Float[Tensor, "b c *s"]:
    """A field on `grid` from weights of cubic B-splines, at equal distances from border to border.

    A pixel's value is a weighted mean of at most 4 weights per axis, so it never exceeds the largest weight.
    """
    for axis, n in enumerate(grid, start=2):
        weights = _along(weights, splines(n, weights.shape[axis]).to(weights), axis)
    return weights


def polynomial(weights: Float[Tensor, "b c *p"], grid: tuple[int, ...]) -> Float[Tensor, "b c *s"]:
    """A field on `grid` from weights of products of Legendre polynomials whose total degree is below `p`."""
    order = weights.shape[-1]
    degree = pixel_indices(weights).sum(1, keepdim=True)
    weights = weights * (degree < order)
    for axis, n in enumerate(grid, start=2):
        weights = _along(weights, legendre(n, order).to(weights), axis)
    return weights


def splines(n: int, points: int) -> Float[Tensor, "n points"]:
    """Uniform cubic B-splines at `n` pixels; rows are non-negative and add up to 1.

    Args:
        points: number of splines, at least 4.
    """
    position = torch.linspace(0, points - 3, n, dtype=torch.float64)
    distance = (position[:, None] - torch.arange(-1, points - 1, dtype=torch.float64)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def legendre(n: int, order: int) -> Float[Tensor, "n order"]:
    """Legendre polynomials of degree 0 to `order` - 1 at `n` pixels in [-1, 1]; powers would be nearly dependent."""
    position = torch.linspace(-1, 1, n, dtype=torch.float64)
    columns = [torch.ones_like(position), position]
    for k in range(1, order - 1):
        columns.append(((2 * k + 1) * position * columns[k] - k * columns[k - 1]) / (k + 1))
    return torch.stack(columns[:order], 1)


def cosines(n: int) -> Float[Tensor, "n n"]:
    """The orthonormal cosine transform of `n` values (DCT-II), a row for each frequency."""
    frequency = torch.arange(n, dtype=torch.float64)[:, None]
    position = torch.arange(n, dtype=torch.float64)[None] + 0.5
    basis: Tensor = torch.cos(torch.pi * frequency * position / n) * (2 / n) ** 0.5
    basis[0] /= 2**0.5
    return basis


def _along(x: Tensor, basis: Float[Tensor, "n points"], axis: int) -> Tensor:
    result: Tensor = torch.tensordot(x, basis, dims=([axis], [1])).movedim(-1, axis)
    return result
