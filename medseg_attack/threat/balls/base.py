"""Bases of balls: one length for the whole change, an inner ball, lengths in mm, and anatomy that moves."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.numerics.samples import TINY, draw, length, widen
from medseg_attack.types import Ball, Bindable, Flow, Image, PerSample

SAME = 1e-6  # of intensities: float32 of two machines may differ by so much in an interpolated value


class LengthBall(Ball):
    """A ball that bounds one length of the whole change: what is too long is scaled down."""

    def project(self, x: Image, x0: Image) -> Image:
        factor = self.shrink(x.detach(), x0).clamp(max=1)  # a constant: the length of no change has no slope
        return (x0 + widen(factor, x) * (x - x0)).clamp(0, 1)

    def shrink(self, x: Image, x0: Image) -> PerSample:
        """The factor that brings the change of each sample to the edge of the ball."""
        return self.eps / (self.size(x, x0) + TINY)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        """A step in a random direction, cut to the ball."""
        return self.project(x0 + self.step(draw(torch.randn, x0, seeds), x0), x0)


class OperationBall(LengthBall):
    """A ball as long as the change that an operation of strength `eps` makes of the image itself."""

    @abstractmethod
    def radius(self, image: Image) -> PerSample:
        """The L2 length of the longest change of each sample."""

    def step(self, grad: Image, image: Image) -> Image:
        return grad * widen(self.radius(image) / (length(grad) + TINY), grad)

    def shrink(self, x: Image, x0: Image) -> PerSample:
        return self.radius(x0) / (length(x - x0) + TINY)


class AroundBall(Ball):
    """A ball that lets a part of the image change, in another ball."""

    ball: Ball

    @property
    def eps(self) -> float:
        return self.ball.eps

    @property
    def limit(self) -> float:
        return self.ball.limit

    def shares_of(self, image: Image) -> Image:
        return self.ball.shares_of(image)


@dataclass(frozen=True)
class BallInMm(Bindable, Ball):
    """A ball that must know the spacing of its cases; unbound, it takes a pixel for 1 mm."""

    def mm(self, like: Tensor) -> Float[Tensor, "b n *ones"]:
        """The size of a pixel of each sample along each axis, in mm."""
        axes = like.ndim - 2
        cases = () if self.setting is None else self.setting.cases
        spacings = [case.spacing_mm for case in cases] or [(1.0,) * axes] * len(like)
        return like.new_tensor(spacings).view(len(spacings), axes, *(1 for _ in range(axes)))


@dataclass(frozen=True)
class MovingBall(BallInMm):
    """A ball in which anatomy may move; intensities are carried along and do not change beyond that.

    No image tells how far its content moved, so the size of a change is the `length` of the flow that an attack
    returns. What is checked of the image is that this flow, and nothing else, made it.
    """

    moves_anatomy = True
    restrictable = False

    @abstractmethod
    def length(self, flow: Flow) -> PerSample:
        """The size of a flow, in the unit of `eps`."""

    def step(self, grad: Image, image: Image) -> Image:
        return torch.zeros_like(image)

    def project(self, x: Image, x0: Image) -> Image:
        return x0.clone()

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        return x0.clone()

    def size(self, x: Image, x0: Image) -> PerSample:
        """Infinite where intensities changed, else 0."""
        return torch.where((x - x0).abs().flatten(1).amax(1) > SAME, math.inf, 0.0).to(x0)


def even_change(ball: Ball, image: Image) -> Image:
    """How far each value may go when all go alike, up to the edge of the ball: eps in Linf, eps / sqrt(n) in L2.

    Of channels with a share of the budget each goes as far as its own share. It is 0 where the ball lets nothing
    change. A ball that measures a change against the image, such as `gain`, has no finite size of a change of a black
    one: there it is the ball's own step.
    """
    alike = ball.free(image) * ball.shares_of(image)
    size = ball.size(alike, torch.zeros_like(alike))
    even = widen(ball.eps / (size + TINY), image) * alike
    return torch.where(widen(size.isinf(), image), ball.step(alike, image).abs(), even)


def scale_of(ball: Ball, image: Image) -> Image:
    """How far each value may go: as far as all may go alike, or by 1 where the ball counts what changes, as l0 does."""
    free = ball.free(image).to(image)
    nothing = torch.zeros_like(free)
    counts = ball.size(free / 2, nothing) == ball.size(free, nothing)
    return torch.where(widen(counts & ~ball.size(free, nothing).isinf(), image), free, even_change(ball, image))


def bounds_length(ball: Ball) -> bool:
    """Whether a ball bounds the length of a change, possibly in a region or in each channel, and no value by itself."""
    while isinstance(ball, AroundBall):
        ball = ball.ball
    return isinstance(ball, LengthBall)


def shared_out(ball: Ball, share: Image, image: Image) -> Image:
    """The change of an image whose values are shares, in [-1, 1], of what the ball lets each of them change by.

    In a ball that bounds a length it is the longest change along them, wherever they concentrate.
    """
    return ball.step(share, image) if bounds_length(ball) else scale_of(ball, image) * share


def to_edge(ball: Ball, x: Image, x0: Image) -> PerSample:
    """The factor that brings each change to the edge of a ball that bounds a length."""
    inner = ball.unrestricted
    return inner.shrink(x, x0) if isinstance(inner, LengthBall) else ball.eps / (ball.size(x, x0) + TINY)


def longest(flow: Flow) -> PerSample:
    """The length of the longest displacement of each sample, in the unit of the flow."""
    return flow.square().sum(1).sqrt().flatten(1).amax(1)
