"""Large arrays in slabs: what is computed value by value needs no second array of a whole volume.

A batch of slices is one slab, so that nothing is cut there. Cuts change no bit of what is computed value by value.
"""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from types import EllipsisType
from typing import TypeAlias

from torch import Tensor

SLAB = 2**23  # values: 64 MiB of float64

Slab: TypeAlias = tuple[EllipsisType | slice, ...]  # of the last axes of an array


def slabs(shape: Sequence[int], axes: int) -> Iterator[Slab]:
    """Indices that cut an array along the first of its last `axes` axes into parts of `SLAB` values at most.

    One plane of that axis is the least part.

    >>> [index[1] for index in slabs((2, 5, 2**10, 2**11), axes=3)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    n = shape[-axes]
    planes = max(1, SLAB // max(1, prod(shape) // max(1, n)))
    rest = (slice(None),) * (axes - 1)
    for start in range(0, n, planes):
        yield (..., slice(start, min(n, start + planes)), *rest)


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
    first, *others = (
        compute(*(tensor[index] for tensor in tensors)) for index in slabs(tensors[0].shape, tensors[0].ndim - 2)
    )
    for other in others:
        first = first + other
    return first
