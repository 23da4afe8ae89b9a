"""Norm balls: every pixel, the whole length, or the number of pixels."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.numerics.samples import TINY, draw, length, widen
from medseg_attack.numerics.slabs import by_slab, slabs
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import LengthBall
from medseg_attack.types import Ball, Image, PerSample


@register("linf", kind="ball")
@dataclass(frozen=True)
class Linf(Ball):
    """Every pixel may change by up to `eps`, a fraction of the image's range.

    Attributes:
        eps: from 0 to below 1; 4/255 is 4 grey levels.

    Raises:
        InputError: `eps` is not from 0 to below 1.
    """

    eps: float = 8 / 255

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise InputError(
                f"expected 0 <= eps < 1, a fraction of the image's range, got {self.eps:g}; "
                f"for grey levels of 255 write {abs(self.eps):g}/255"
            )

    def step(self, grad: Image, image: Image) -> Image:
        return by_slab(lambda grad: self.eps * grad.sign(), grad)

    def project(self, x: Image, x0: Image) -> Image:
        return by_slab(lambda x, x0: x.clamp(x0 - self.eps, x0 + self.eps).clamp(0, 1), x, x0)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        moved = by_slab(lambda x0, share: x0 + self.eps * (2 * share - 1), x0, draw(torch.rand, x0, seeds))
        return self.project(moved, x0)

    def size(self, x: Image, x0: Image) -> PerSample:
        return self.size_of_parts((x[slab], x0[slab]) for slab in slabs(x.shape, x.ndim - 2))

    def size_of_parts(self, parts: Iterable[tuple[Image, Image]]) -> PerSample:
        return reduce(torch.maximum, ((x - x0).abs().flatten(1).amax(1) for x, x0 in parts))


@register("l2", kind="ball")
@dataclass(frozen=True)
class L2(LengthBall):
    """The whole change of an image has Euclidean length `eps` at most, in units of the image's range.

    It grows with the square root of the number of pixels: linf(8/255) on 224 x 224 reaches l2(7.03).

    Attributes:
        eps: 0 or more.
    """

    eps: float = 1.0

    def step(self, grad: Image, image: Image) -> Image:
        return self.eps * grad / (widen(length(grad), grad) + TINY)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        """A point uniform in the ball: its radius is eps * U^(1/n); eps * U would crowd the centre."""
        direction = self.step(draw(torch.randn, x0, seeds), x0)
        radius = draw(torch.rand, x0[:, :1].flatten(1)[:, :1], [seed ^ 1 for seed in seeds]).flatten()
        return self.project(x0 + widen(radius ** (1 / x0[0].numel()), x0) * direction, x0)

    def size(self, x: Image, x0: Image) -> PerSample:
        return length(x - x0)


@register("l0", kind="ball")
@dataclass(frozen=True)
class L0(Ball):
    """At most a share `eps` of the image's values may change, each to any intensity.

    Attributes:
        eps: from 0 to 1.

    Raises:
        InputError: `eps` is not from 0 to 1.
    """

    eps: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1:
            raise InputError(
                f"expected 0 <= eps <= 1, the share of pixels that may change, got {self.eps:g}; write l0(0.1)"
            )

    def step(self, grad: Image, image: Image) -> Image:
        """The move of the pixels with the largest slopes, to black or white."""
        return torch.where(self._largest(grad.abs()), grad.sign(), 0.0)

    def project(self, x: Image, x0: Image) -> Image:
        return torch.where(self._largest((x - x0).abs()), x, x0).clamp(0, 1)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        """`x0` with random values at random pixels."""
        chosen = self._largest(draw(torch.rand, x0, [seed ^ 1 for seed in seeds]))
        return torch.where(chosen, draw(torch.rand, x0, seeds), x0)

    def size(self, x: Image, x0: Image) -> PerSample:
        return (x != x0).flatten(1).to(x0.dtype).mean(1)

    def _largest(self, values: Tensor) -> Tensor:
        """Marks the share `eps` of each sample's largest values, none of which is 0."""
        flat = values.flatten(1)
        n = math.floor(self.eps * flat.shape[1] * (1 + 1e-9))
        top = flat.topk(n, 1)
        return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, top.indices, top.values > 0).view_as(values)
