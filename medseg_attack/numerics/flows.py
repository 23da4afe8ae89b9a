"""Images and masks that move: linear interpolation, and deformations that invert."""

from collections.abc import Iterator
from itertools import product

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from medseg_attack.numerics.slabs import Slab, is_one_slab, slabs
from medseg_attack.types import Flow, Mask

SQUARINGS = 6  # a velocity is composed of 2^6 steps of 1/64 of it


def warped(x: Shaped[Tensor, "b c *s"], flow: Float[Tensor, "b n *t"], first: int = 0) -> Float[Tensor, "b c *t"]:
    """`x` at `p + flow(p)`, linear between pixels, its border repeated outside; exact where the flow is whole.

    Differentiable in both. Where no gradient is asked for, a volume is computed in slabs. Not `grid_sample`: its
    coordinates in [-1, 1] do not hit pixels exactly, so that a flow of 0 would already change an image.

    >>> row = torch.tensor([[[[0.0, 1.0, 4.0]]]])
    >>> warped(row, torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 1, 3)).flatten().tolist()
    [0.5, 2.5, 4.0]

    Args:
        flow: of all pixels of `x`, or of those of some planes of its first spatial axis.
        first: the number of the first of these planes.
    """
    has_gradient = torch.is_grad_enabled() and (x.requires_grad or flow.requires_grad)
    if not has_gradient and not is_one_slab(flow):
        whole = x.new_empty((*x.shape[:2], *flow.shape[2:]), dtype=torch.result_type(x, flow))
        for slab, start in slabs_of_flow(flow):
            whole[slab] = warped(x, flow[slab], first + start)
        return whole
    grid = x.shape[2:]
    position = pixel_indices(flow, first) + flow
    sizes = torch.tensor(grid, device=x.device).view(1, -1, *(1 for _ in grid))
    position = torch.minimum(position.clamp(min=0), (sizes - 1).to(position))
    low = torch.minimum(position.detach().floor(), (sizes - 2).clamp(min=0).to(position)).long()
    part = position - low
    shape = (*x.shape[:2], *flow.shape[2:])
    flat, result = x.flatten(2), x.new_zeros(shape, dtype=torch.result_type(x, flow))
    for corner in product((0, 1), repeat=len(grid)):
        index = torch.zeros_like(low[:, 0])
        weight = torch.ones_like(part[:, 0])
        for axis, step in enumerate(corner):
            index = index * grid[axis] + (low[:, axis] + step).clamp(max=grid[axis] - 1)
            weight = weight * (part[:, axis] if step else 1 - part[:, axis])
        values = flat.gather(2, index.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view(shape)
        result = result + weight[:, None] * values
    return result


def slabs_of_flow(flow: Flow) -> Iterator[tuple[Slab, int]]:
    """Indices that cut a flow along its first spatial axis, each with the number of its first plane."""
    start = 0
    for slab in slabs(flow.shape, flow.ndim - 2):
        yield slab, start
        start += flow[slab].shape[2]


def moved(target: Mask, flow: Flow | None, exclusive: bool) -> Mask:
    """The truth after the anatomy moved: a pixel has the classes that most of it came from.

    Args:
        flow: None where nothing moved.
        exclusive: whether a pixel has exactly one class, the one with the largest share.
    """
    if flow is None:
        return target
    soft = warped(target.to(flow.dtype), flow)
    if not exclusive:
        return soft >= 0.5
    result: Mask = torch.zeros_like(target).scatter_(1, soft.max(1, keepdim=True).indices, True)
    return result


def exponential(velocity: Flow) -> Flow:
    """The flow after one unit of time of a velocity that is constant in time, by scaling and squaring.

    It moves no pixel further than the largest velocity. The exponential of minus the velocity undoes it.
    """
    flow = velocity / 2**SQUARINGS
    for _ in range(SQUARINGS):
        flow = flow + warped(flow, flow)
    result: Flow = flow
    return result


def pixel_indices(like: Tensor, first: int = 0) -> Float[Tensor, "1 n *s"]:
    """The index of every pixel along each of the `n` spatial axes of `like`, the first of them counted from `first`."""
    starts = (first, *(0 for _ in like.shape[3:]))
    axes = [
        torch.arange(start, start + n, device=like.device, dtype=like.dtype)
        for start, n in zip(starts, like.shape[2:], strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
