"""Numbers per sample: widened to images, drawn from seeds, lengths and slopes."""

from collections.abc import Callable, Sequence
from zlib import crc32

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from medseg_attack.types import Image, PerSample


def gradient_of(values: Float[Tensor, "b *n"], x: Image) -> Image:
    """The gradient of each sample's sum of `values` by that sample of `x`."""
    return torch.autograd.grad(values.sum(), x)[0]


def straight_through(value: Tensor, like: Tensor) -> Tensor:
    """The numbers of `value` with the gradient of `like` (the straight-through estimator, arXiv 1308.3432).

    >>> x = torch.tensor([0.4, 1.6], requires_grad=True)
    >>> rounded = straight_through(x.round(), 3 * x)
    >>> rounded.tolist(), torch.autograd.grad(rounded.sum(), x)[0].tolist()
    ([0.0, 2.0], [3.0, 3.0])
    """
    return value.detach() + (like - like.detach())  # the bracket is 0 and carries the gradient


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
    return (draw(torch.rand, like, seeds) < 0.5).to(like) * 2 - 1


TINY = 1e-12  # keeps the direction of a zero gradient zero instead of not-a-number


def draw(random: Callable[..., Tensor], like: Tensor, seeds: Sequence[int]) -> Tensor:
    """Random numbers of the shape of `like`; sample `i` depends on `seeds[i]` alone, the same on every device."""
    parts = [
        random(like.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds
    ]
    return torch.stack(parts).to(like)
