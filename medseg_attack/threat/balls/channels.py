"""Balls of some channels alone, one for each channel."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from medseg_attack.errors import InputError, require
from medseg_attack.registry import register, with_eps
from medseg_attack.threat.balls.base import AroundBall
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Ball, Image, PerSample


@register("channels", kind="ball")
@dataclass(frozen=True)
class Channels(AroundBall):
    """Only some channels may change, each in a ball of its own: modalities of one scan, with a budget for each.

    Attributes:
        ball: the ball of one channel.
        channels: numbers of the channels that may change, from 0, each once.
        shares: share of `ball.eps` that each of them has, above 0 and up to 1; (): all of it.

    Raises:
        InputError: a channel is named twice, is below 0 or not in the image; or a share is not above 0 and at most 1.
    """

    ball: Ball = Linf()
    channels: tuple[int, ...] = (0,)
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(self)
        if not self.channels or len(set(self.channels)) < len(self.channels) or min(self.channels) < 0:
            raise InputError(f"expected channels from 0, each once, got {self.channels}; e.g. channels=(0, 2)")
        if self.shares and (len(self.shares) != len(self.channels) or not all(0 < s <= 1 for s in self.shares)):
            raise InputError(
                f"expected a share above 0, up to 1, for each of the channels {self.channels}, got {self.shares}; "
                "leave a channel out instead of giving it nothing"
            )

    def _each(self, image: Image) -> Iterator[tuple[slice, Ball, float]]:
        """Index, ball and share of every channel that may change."""
        self._check(image)
        for n, share in zip(self.channels, self.shares or (1.0,) * len(self.channels), strict=True):
            yield slice(n, n + 1), with_eps(self.ball, share * self.ball.eps), share

    def _check(self, image: Image) -> None:
        if max(self.channels) >= image.shape[1]:
            raise InputError(
                f"expected channels below {image.shape[1]}, which the image has, got {self.channels}; "
                "write channels=(0,)"
            )

    def free(self, image: Image) -> Bool[Tensor, "b c *s"]:
        self._check(image)
        free = torch.zeros_like(image, dtype=torch.bool)
        free[:, list(self.channels)] = True
        return free

    def shares_of(self, image: Image) -> Image:
        shares = torch.ones_like(image)
        for index, _, share in self._each(image):
            shares[:, index] = share
        return shares

    def step(self, grad: Image, image: Image) -> Image:
        moved = torch.zeros_like(grad)
        for index, ball, _ in self._each(image):
            moved[:, index] = ball.step(grad[:, index], image[:, index])
        return moved

    def project(self, x: Image, x0: Image) -> Image:
        kept = x0.expand_as(x).clone()
        for index, ball, _ in self._each(x):
            kept[:, index] = ball.project(x[:, index], x0[:, index])
        return kept

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        kept = x0.clone()
        for number, (index, ball, _) in enumerate(self._each(x0)):
            kept[:, index] = ball.sample(x0[:, index], [(seed + number * 0x9E3779B9) % 2**32 for seed in seeds])
        return kept

    def size(self, x: Image, x0: Image) -> PerSample:
        """The largest of the channels' sizes over their shares; infinite where another channel moved."""
        sizes = [ball.size(x[:, index], x0[:, index]) / share for index, ball, share in self._each(x)]
        others = [n for n in range(x.shape[1]) if n not in self.channels]
        moved = (x[:, others] != x0[:, others]).flatten(1).any(1)
        return torch.stack(sizes).amax(0).masked_fill(moved, torch.inf)
