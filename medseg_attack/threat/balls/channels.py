"""Some channels alone, each in a ball of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.registry import register, with_eps
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Ball, Image, PerSample


@register("channels", kind="ball")
@dataclass(frozen=True)
class Channels(Ball):
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
