"""Large arrays in slabs: what is computed value by value needs no second array of a whole volume.

Cuts change no bit of what is computed value by value. Sums of floats are cut as for each sample alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from math import prod
from operator import add
from types import EllipsisType
from typing import Any, TypeAlias

import torch
from torch import Tensor

SLAB = 2**20  # values: 8 MiB of float64, which an allocator keeps; it maps larger memory anew each time, which is slow

Slab: TypeAlias = tuple[EllipsisType | slice, ...]  # of the last axes of an array


def slabs(shape: Sequence[int], axes: int) -> Iterator[Slab]:
    """Indices that cut an array along the first of its last `axes` axes into parts of `SLAB` values at most.

    One plane of that axis is the least part.

    >>> [index[1] for index in slabs((2, 5, 2**8, 2**10), axes=3)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    n = shape[-axes]
    planes = max(1, SLAB // max(1, prod(shape) // max(1, n)))
    rest = (slice(None),) * (axes - 1)
    for start in range(0, n, planes):
        yield (..., slice(start, min(n, start + planes)), *rest)


def slabs_of_samples(samples: Tensor) -> list[Slab]:
    """Indices that cut samples (b, c, *s) where each is cut alone, so that no sum depends on how many there are."""
    return list(slabs(samples.shape[1:], samples.ndim - 2))


def is_one_slab(samples: Tensor) -> bool:
    """Whether each of the samples (b, c, *s) is no larger than a slab."""
    return len(slabs_of_samples(samples)) == 1


def by_slab(compute: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """The result of a function of samples (b, c, *s) of one shape that computes each value from those in its place.

    >>> import torch
    >>> by_slab(torch.add, torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).sum().item()
    8.0
    """
    indices = list(slabs(tensors[0].shape, tensors[0].ndim - 2))
    if len(indices) == 1:
        return compute(*tensors)
    parts = (compute(*(tensor[index] for tensor in tensors)) for index in indices)
    first = next(parts)
    result = first.new_empty(tensors[0].shape)
    result[indices[0]] = first
    for index, part in zip(indices[1:], parts, strict=True):
        result[index] = part
    return result


def sum_of_slabs(compute: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """The sum of what a function returns for each slab of samples (b, c, *s): exact for whole numbers."""
    return _sum(compute, slabs(tensors[0].shape, tensors[0].ndim - 2), *tensors)


def _sum(compute: Callable[..., Tensor], indices: Iterable[Slab], *tensors: Tensor) -> Tensor:
    # one after the other: small results that stay would leave the memory between them in pieces
    return reduce(add, (compute(*(tensor[index] for tensor in tensors)) for index in indices))


def sums_by_slab(compute: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """The sum of what a function returns for each slab of samples (b, c, *s), with a gradient by the first of them.

    The gradient computes each slab again, so that nothing of the size of a volume is kept for it but the samples.

    Args:
        compute: function of the parts of `x` and `others` in one slab that returns sums over it.
    """
    if is_one_slab(x):
        return compute(x, *others)
    result: Tensor = _SlabSums.apply(compute, x, *others)
    return result


class _SlabSums(torch.autograd.Function):
    """The sums over slabs; the gradient of each slab is that of a pass of its own."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
        ctx.save_for_backward(x, *others)
        ctx.compute = compute
        return _sum(compute, slabs_of_samples(x), x, *others)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, *others = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is asked for, which needs all slabs
            grad = torch.autograd.grad(ctx.compute(x, *others), x, upstream, create_graph=True)[0]
            return None, grad, *(None for _ in others)
        grad = torch.empty_like(x)
        for slab in slabs_of_samples(x):
            part = x[slab].detach().requires_grad_()
            with torch.enable_grad():
                sums = ctx.compute(part, *(other[slab] for other in others))
            (grad[slab],) = torch.autograd.grad(sums, part, upstream)
        return None, grad, *(None for _ in others)
