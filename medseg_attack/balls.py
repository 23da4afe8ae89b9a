"""What an attacker may change: a norm and a budget, as values."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.registry import register, with_eps
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


def held(ball: Ball, change: Tensor) -> Tensor:
    """A change of no image yet, cut to the ball; every pixel to 1/2 at most, as if added to the middle of [0, 1]."""
    middle = torch.full_like(change, 0.5)
    return ball.project(middle + change, middle) - middle


@register("l0", kind="ball")
@dataclass(frozen=True)
class L0:
    """At most that share of the image's values may change, each as far as it likes."""

    eps: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1:
            raise InputError(f"expected 0 <= eps <= 1, the share of pixels that may change, got {self.eps:g}; check it")

    @property
    def limit(self) -> float:
        return self.eps

    def step(self, grad: Image, image: Image) -> Image:
        """The pixels of the largest slopes, to black or white."""
        return torch.where(self._largest(grad.abs()), grad.sign(), 0.0)

    def project(self, x: Image, x0: Image) -> Image:
        return torch.where(self._largest((x - x0).abs()), x, x0).clamp(0, 1)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        """Random pixels with random values."""
        chosen = self._largest(drawn(torch.rand, x0, [seed ^ 1 for seed in seeds]))
        return torch.where(chosen, drawn(torch.rand, x0, seeds), x0)

    def size(self, x: Image, x0: Image) -> PerSample:
        return (x != x0).flatten(1).to(x0.dtype).mean(1)

    def _largest(self, of: Tensor) -> Tensor:
        """The share `eps` of each sample's largest values, none of which is 0."""
        flat = of.flatten(1)
        n = math.floor(self.eps * flat.shape[1] * (1 + 1e-9))
        top = flat.topk(n, 1)
        return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, top.indices, top.values > 0).view_as(of)


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


def free(ball: Ball, image: Image) -> Bool[Tensor, "b c *s"]:
    """The values that the ball lets an image change: all of them, unless it is held to a region or to some channels."""
    where: Callable[[Image], Tensor] | None = getattr(ball, "free", None)
    return torch.ones_like(image, dtype=torch.bool) if where is None else where(image)


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


@register("channels", kind="ball")
@dataclass(frozen=True)
class Channels:
    """Only some channels may move, each in a ball of its own: modalities of one scan, with a budget per modality.

    Attributes:
        ball: of one channel.
        channels: that may move, from 0.
        shares: of `ball.eps` that each of them has; (): all of it.
    """

    ball: Ball = Linf()
    channels: tuple[int, ...] = (0,)
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.channels or len(set(self.channels)) < len(self.channels) or min(self.channels) < 0:
            raise InputError(f"expected channels from 0, each once, got {self.channels}; e.g. channels=(0, 2)")
        if self.shares and (len(self.shares) != len(self.channels) or not all(0 < s <= 1 for s in self.shares)):
            raise InputError(
                f"expected a share above 0, up to 1, for each of the channels {self.channels}, got {self.shares}; "
                "leave a channel out instead of giving it nothing"
            )

    @property
    def eps(self) -> float:
        return self.ball.eps

    @property
    def limit(self) -> float:
        return self.ball.limit

    def _each(self, image: Image) -> Iterator[tuple[slice, Ball, float]]:
        """Place, ball and share of every channel that may move."""
        self._check(image)
        for at, share in zip(self.channels, self.shares or (1.0,) * len(self.channels), strict=True):
            yield slice(at, at + 1), with_eps(self.ball, share * self.ball.eps), share

    def _check(self, image: Image) -> None:
        if max(self.channels) >= image.shape[1]:
            raise InputError(
                f"expected channels below {image.shape[1]}, which the image has, got {self.channels}; check the ball"
            )

    def free(self, image: Image) -> Bool[Tensor, "b c *s"]:
        self._check(image)
        where = torch.zeros_like(image, dtype=torch.bool)
        where[:, list(self.channels)] = True
        return where

    def step(self, grad: Image, image: Image) -> Image:
        moved = torch.zeros_like(grad)
        for at, ball, _ in self._each(image):
            moved[:, at] = ball.step(grad[:, at], image[:, at])
        return moved

    def project(self, x: Image, x0: Image) -> Image:
        kept = x0.expand_as(x).clone()
        for at, ball, _ in self._each(x):
            kept[:, at] = ball.project(x[:, at], x0[:, at])
        return kept

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        kept = x0.clone()
        for number, (at, ball, _) in enumerate(self._each(x0)):
            kept[:, at] = ball.sample(x0[:, at], [(seed + number * 0x9E3779B9) % 2**32 for seed in seeds])
        return kept

    def size(self, x: Image, x0: Image) -> PerSample:
        """The largest of the channels' sizes over their shares; infinite where another channel moved."""
        sizes = [ball.size(x[:, at], x0[:, at]) / share for at, ball, share in self._each(x)]
        others = [n for n in range(x.shape[1]) if n not in self.channels]
        moved = (x[:, others] != x0[:, others]).flatten(1).any(1)
        return torch.stack(sizes).amax(0).masked_fill(moved, torch.inf)
