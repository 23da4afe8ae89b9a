"""What an attacker may change: a norm and a budget, as values."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.types import Ball, Flow, Image, PerSample

TINY = 1e-12  # keeps the direction of a zero gradient zero instead of not-a-number


@register("linf", kind="ball")
@dataclass(frozen=True)
class Linf:
    """Every pixel may move by `eps`, a fraction of the image's range."""

    eps: float = 8 / 255

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise InputError(
                f"expected 0 <= eps < 1, a fraction of the image's range, got {self.eps:g}; "
                f"for grey levels of 255 write {abs(self.eps):g}/255"
            )

    @property
    def limit(self) -> float:
        return self.eps

    def step(self, grad: Image, image: Image) -> Image:
        return self.eps * grad.sign()

    def project(self, x: Image, x0: Image) -> Image:
        return x.clamp(x0 - self.eps, x0 + self.eps).clamp(0, 1)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        return self.project(x0 + self.eps * (2 * drawn(torch.rand, x0, seeds) - 1), x0)

    def size(self, x: Image, x0: Image) -> PerSample:
        return (x - x0).abs().flatten(1).amax(1)


@register("l2", kind="ball")
@dataclass(frozen=True)
class L2:
    """The whole change of an image has Euclidean length `eps` at most, in units of the image's range.

    It grows with the square root of the number of pixels: linf(8/255) on 224 x 224 reaches l2(7.03).
    """

    eps: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eps < math.inf:
            raise InputError(f"expected eps >= 0, got {self.eps:g}; write a length such as l2(1.0)")

    @property
    def limit(self) -> float:
        return self.eps

    def step(self, grad: Image, image: Image) -> Image:
        return self.eps * grad / (_wide(_length(grad), grad) + TINY)

    def project(self, x: Image, x0: Image) -> Image:
        shrink = (self.eps / (_length(x - x0) + TINY)).clamp(max=1)
        return (x0 + _wide(shrink, x) * (x - x0)).clamp(0, 1)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        """Uniform in the ball: radius eps * U^(1/n), not eps * U, which would crowd the centre."""
        direction = self.step(drawn(torch.randn, x0, seeds), x0)
        radius = drawn(torch.rand, x0[:, :1].flatten(1)[:, :1], [seed ^ 1 for seed in seeds]).flatten()
        return self.project(x0 + _wide(radius ** (1 / x0[0].numel()), x0) * direction, x0)

    def size(self, x: Image, x0: Image) -> PerSample:
        return _length(x - x0)


def size_of(ball: Ball, x: Image, x0: Image, flow: Flow | None) -> PerSample:
    """How large a change is in its ball, of images whose anatomy may have moved.

    Args:
        x0: the untouched images; where there is a flow, those after their anatomy moved.
    """
    size = ball.size(x, x0)
    if flow is None:
        return size
    length: Callable[[Flow], PerSample] | None = getattr(ball, "length", None)
    if length is None:  # nothing may move in such a ball
        return torch.where(flow.flatten(1).any(1), math.inf, size)
    return torch.maximum(size, length(flow))


def plain(ball: Ball) -> Ball:
    """The ball itself, of one that is held to a region."""
    inner: Ball = getattr(ball, "plain", ball)
    return inner


def covered(ball: Ball, x: Image, x0: Image) -> Bool[Tensor, "b 1 *s"]:
    """The pixels that are not scored, because something lies on them."""
    what: Callable[[Image, Image], Tensor] | None = getattr(ball, "covered", None)
    return torch.zeros_like(x[:, :1], dtype=torch.bool) if what is None else what(x, x0)


def drawn(random: Callable[..., Tensor], like: Tensor, seeds: Sequence[int]) -> Tensor:
    """Random numbers of the shape of `like`; sample `i` depends on `seeds[i]` alone, the same on every device."""
    parts = [
        random(like.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds
    ]
    return torch.stack(parts).to(like)


def _length(x: Tensor) -> PerSample:
    return x.flatten(1).square().sum(1).sqrt()


def _wide(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.view(-1, *(1 for _ in like.shape[1:]))
