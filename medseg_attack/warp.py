"""Images and truths that move: linear interpolation in 2-D and 3-D, smooth fields, and deformations that invert.

A *flow* says, in pixels, where what is seen at a pixel came from: `warped(x, flow)[p] = x[p + flow[p]]`.
"""

from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.types import Flow, Mask

SQUARINGS = 6  # of a velocity: steps of 1/64 of it, composed


def warped(x: Float[Tensor, "b c *s"], flow: Flow) -> Float[Tensor, "b c *s"]:
    """`x` at `p + flow(p)`, linear between pixels, its border repeated outside; exact where the flow is whole.

    Differentiable in both. Not `grid_sample`: its coordinates in [-1, 1] do not hit pixels exactly, so that a flow of
    0 would already change an image.

    >>> row = torch.tensor([[[[0.0, 1.0, 4.0]]]])
    >>> warped(row, torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 1, 3)).flatten().tolist()
    [0.5, 2.5, 4.0]
    """
    grid = x.shape[2:]
    position = _indices(flow) + flow
    sizes = torch.tensor(grid, device=x.device).view(1, -1, *(1 for _ in grid))
    position = torch.minimum(position.clamp(min=0), (sizes - 1).to(position))
    low = torch.minimum(position.detach().floor(), (sizes - 2).clamp(min=0).to(position)).long()
    part = position - low
    flat, result = x.flatten(2), torch.zeros_like(x + flow[:, :1])
    for corner in product((0, 1), repeat=len(grid)):
        index = torch.zeros_like(low[:, 0])
        weight = torch.ones_like(part[:, 0])
        for axis, step in enumerate(corner):
            index = index * grid[axis] + (low[:, axis] + step).clamp(max=grid[axis] - 1)
            weight = weight * (part[:, axis] if step else 1 - part[:, axis])
        values = flat.gather(2, index.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view_as(x)
        result = result + weight[:, None] * values
    return result


def moved(target: Mask, flow: Flow | None, exclusive: bool) -> Mask:
    """The truth carried along: a pixel is of what most of it came from; of one class, if classes exclude each other."""
    if flow is None:
        return target
    soft = warped(target.to(flow.dtype), flow)
    if not exclusive:
        return soft >= 0.5
    result: Mask = torch.zeros_like(target).scatter_(1, soft.argmax(1, keepdim=True), True)
    return result


def exponential(velocity: Flow) -> Flow:
    """The flow after one unit of time of a velocity that stands still, by scaling and squaring.

    It moves no pixel further than the largest velocity, and that of minus the velocity undoes it.
    """
    flow = velocity / 2**SQUARINGS
    for _ in range(SQUARINGS):
        flow = flow + warped(flow, flow)
    result: Flow = flow
    return result


def smooth(weights: Float[Tensor, "b c *p"], grid: tuple[int, ...]) -> Float[Tensor, "b c *s"]:
    """A field on `grid` from weights of cubic B-splines, at equal distances from border to border.

    At every pixel a weighted mean of at most 4 weights per axis, hence never beyond the largest of them.
    """
    for axis, n in enumerate(grid, start=2):
        weights = _along(weights, splines(n, weights.shape[axis]).to(weights), axis)
    return weights


def polynomial(weights: Float[Tensor, "b c *p"], grid: tuple[int, ...]) -> Float[Tensor, "b c *s"]:
    """A field on `grid` from weights of products of Legendre polynomials, of a total degree below their number."""
    order = weights.shape[-1]
    degree = _indices(weights).sum(1, keepdim=True)
    weights = weights * (degree < order)
    for axis, n in enumerate(grid, start=2):
        weights = _along(weights, legendre(n, order).to(weights), axis)
    return weights


def splines(n: int, points: int) -> Float[Tensor, "n points"]:
    """Uniform cubic B-splines at `n` pixels; rows are non-negative and add up to 1. At least 4 points."""
    at = torch.linspace(0, points - 3, n, dtype=torch.float64)
    distance = (at[:, None] - torch.arange(-1, points - 1, dtype=torch.float64)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def legendre(n: int, order: int) -> Float[Tensor, "n order"]:
    """Legendre polynomials of degree 0 to `order` - 1 at `n` pixels in [-1, 1]; powers would be nearly dependent."""
    at = torch.linspace(-1, 1, n, dtype=torch.float64)
    columns = [torch.ones_like(at), at]
    for k in range(1, order - 1):
        columns.append(((2 * k + 1) * at * columns[k] - k * columns[k - 1]) / (k + 1))
    return torch.stack(columns[:order], 1)


def _along(x: Tensor, basis: Float[Tensor, "n points"], axis: int) -> Tensor:
    result: Tensor = torch.tensordot(x, basis, dims=([axis], [1])).movedim(-1, axis)
    return result


def _indices(like: Tensor) -> Float[Tensor, "1 n *s"]:
    axes = [torch.arange(n, device=like.device, dtype=like.dtype) for n in like.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
