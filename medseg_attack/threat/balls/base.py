"""What a ball may offer beside norm and budget, and what it is where a ball does not."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from medseg_attack.types import Ball, Flow, Image, PerSample


def held(ball: Ball, change: Tensor) -> Tensor:
    """A change of no image yet, cut to the ball; every pixel to 1/2 at most, as if added to the middle of [0, 1]."""
    middle = torch.full_like(change, 0.5)
    return ball.project(middle + change, middle) - middle


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
