"""Numbers per sample: widened to images, drawn from seeds, lengths and slopes."""

from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from medseg_attack.errors import NoGradientError
from medseg_attack.numerics.slabs import SLAB, by_slab
from medseg_attack.types import Image, PerSample

TINY = 1e-12  # keeps the direction of a zero gradient zero instead of not-a-number
BLOCK = 16  # normal numbers that torch makes of as many uniform ones; the last ones of a draw are a block, too


def gradient_of(
    values: Float[Tensor, "*n"], x: Image, *, retain_graph: bool = False, create_graph: bool = False
) -> Image:
    """The gradient by `x` of the sum of `values`, each of which depends on one sample alone, or of their one sum.

    Raises:
        NoGradientError: the values do not depend on `x` as far as automatic differentiation knows.
    """
    if not values.requires_grad:
        raise NoGradientError
    kept = retain_graph or create_graph
    (grad,) = torch.autograd.grad(values.sum(), x, retain_graph=kept, create_graph=create_graph, allow_unused=True)
    if grad is None:
        raise NoGradientError
    return grad


def straight_through(value: Tensor, like: Tensor) -> Tensor:
    """The numbers of `value` with the gradient of `like` (the straight-through estimator, arXiv 1308.3432).

    >>> x = torch.tensor([0.4, 1.6], requires_grad=True)
    >>> rounded = straight_through(x.round(), 3 * x)
    >>> rounded.tolist(), torch.autograd.grad(rounded.sum(), x)[0].tolist()
    ([0.0, 2.0], [3.0, 3.0])
    """
    result: Tensor = _StraightThrough.apply(value.detach(), like)
    return result


class _StraightThrough(torch.autograd.Function):
    """The first tensor forward, the second backward; nothing of their size is computed or kept."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, like: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor]:
        return None, upstream


def length(x: Tensor) -> PerSample:
    """The Euclidean norm of each sample."""
    return x.flatten(1).square().sum(1).sqrt()


def reseeded(seeds: Sequence[int], *purpose: int | str) -> list[int]:
    """Seeds for another purpose, such as a restart or a step: independent of `seeds`, the same on every machine."""
    name = "/".join(map(str, purpose))
    return [crc32(f"{seed}/{name}".encode()) for seed in seeds]


def scaled(grad: Image) -> Image:
    """Each sample's gradient divided by its mean magnitude; a zero gradient stays zero."""
    return grad / (grad.abs().mean(tuple(range(1, grad.ndim)), keepdim=True) + TINY)


def widen(per_sample: Shaped[Tensor, "b"], like: Tensor) -> Tensor:
    """One number per sample as `(b, 1, ..., 1)`, so that it goes with whole images of the shape of `like`."""
    return per_sample.view(-1, *(1 for _ in like.shape[1:]))


def draw_signs(like: Tensor, seeds: Sequence[int]) -> Tensor:
    """Random signs, 1 or -1, of the shape of `like`; sample `i` depends on `seeds[i]` alone."""
    return by_slab(lambda numbers: (numbers < 0.5).to(numbers) * 2 - 1, draw(torch.rand, like, seeds))


def draw(random: Callable[..., Tensor], like: Tensor, seeds: Sequence[int]) -> Tensor:
    """Random numbers of the shape of `like`; sample `i` depends on `seeds[i]` alone, the same on every device."""
    parts = [_drawn(random, like[0].numel(), like.dtype, torch.Generator().manual_seed(seed)) for seed in seeds]
    flat = parts[0][None] if len(parts) == 1 else torch.stack(parts)
    return flat.view(len(parts), *like.shape[1:]).to(like)


def _drawn(random: Callable[..., Tensor], n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Numbers that are drawn in float64; no float64 of more than a slab or two.

    The numbers are those of one draw: generators give them one after the other, normal ones 16 at a time.
    """
    numbers = torch.empty(n, dtype=dtype)
    starts = range(0, max(n - BLOCK, 1), SLAB)
    for start in starts:
        end = n if start == starts[-1] else start + SLAB
        numbers[start:end] = random(end - start, generator=generator, dtype=torch.float64)
    return numbers
