"""Noise of a scanner, at its worst draw: Rician in the magnitude of a complex signal, speckle in that of an echo."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.attacks.physical.ascent import Numbers, Parametrised, Rendered, random_numbers
from medseg_attack.attacks.physical.bias_field import relative
from medseg_attack.numerics.samples import TINY, widen
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import LengthBall
from medseg_attack.types import Ball, Image, PerSample

CUT = 0.9973  # of a normal distribution lies within 3 standard deviations: no pixel's noise is larger


@register("receiver", kind="ball")
@dataclass(frozen=True)
class Receiver(LengthBall):
    """The change may be as large as noise of deviation `eps` in each of two receiver channels can make it.

    Its root mean square is sqrt(2) `eps` at most: the magnitude of a sum differs from that of its first part by the
    length of the second at most.

    Attributes:
        eps: standard deviation of the noise, as a share of the intensity window, from 0 to below 1.
    """

    budgets = "[0, 1)"

    eps: float = 0.05

    def step(self, grad: Image, image: Image) -> Image:
        return math.sqrt(2) * self.eps * grad / (widen(rms(grad), grad) + TINY)

    def size(self, x: Image, x0: Image) -> PerSample:
        return rms(x - x0) / math.sqrt(2)


@register("echo", kind="ball")
@dataclass(frozen=True)
class Echo(LengthBall):
    """The relative change of the pixels may have a root mean square of `eps`; black stays black.

    Attributes:
        eps: largest root mean square of the change of a pixel as a share of its intensity, 0 or more.
    """

    unit = "deviation of a pixel as a share of it"

    eps: float = 0.1

    def step(self, grad: Image, image: Image) -> Image:
        return self.eps * image * grad / (widen(rms(grad), grad) + TINY)

    def project(self, x: Image, x0: Image) -> Image:
        return super().project(torch.where(x0 > 0, x, x0), x0)

    def size(self, x: Image, x0: Image) -> PerSample:
        return rms(relative(x, x0))


def rms(x: Tensor) -> PerSample:
    """Root mean square of each sample."""
    return x.flatten(1).square().mean(1).sqrt()


def normal(numbers: Numbers) -> Numbers:
    """Standard normal numbers, up to 3 deviations, of numbers that are uniform in [-1, 1]."""
    return math.sqrt(2) * torch.erfinv(CUT * numbers)


def no_louder(noise: Tensor, deviation: float) -> Tensor:
    """The noise, scaled down where its root mean square is above `deviation`."""
    return noise * widen((deviation / (rms(noise.detach()) + TINY)).clamp(max=1), noise)


@register(
    "rician",
    kind="attack",
    cost="steps + 2 forward, steps backward",
    paper="Gudbjartsson and Patz, MRM 1995 (the noise)",
    reaches="its ball",
    shown_by="rician(steps=4)",
)
@dataclass(frozen=True)
class Rician(Parametrised):
    """The noise in both receiver channels that harms most in their magnitude (Rician noise; Gudbjartsson 1995).

    Attributes:
        steps: of signed ascent, 0 or more; 0 draws Rician noise at random.
    """

    ball: Ball = Receiver()

    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        return random_numbers(image, 2 * image[0].numel(), seeds)

    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        eps = self.ball.eps
        noise = no_louder(eps * normal(numbers).view(len(image), 2, *image.shape[1:]), eps)
        return Rendered(magnitude(image, noise[:, 0], noise[:, 1]))


def magnitude(image: Image, real: Image, imaginary: Image) -> Image:
    """The magnitude of the image plus complex noise, cut at 1."""
    return torch.complex(image + real, imaginary).abs().clamp(max=1)


@register(
    "speckle",
    kind="attack",
    cost="steps + 2 forward, steps backward",
    paper="Jain 1989 (the noise)",
    reaches="its ball",
    shown_by="speckle(steps=4)",
)
@dataclass(frozen=True)
class Speckle(Parametrised):
    """The multiplicative noise that harms most, x (1 + n), as in ultrasound and SAR (speckle; Jain 1989).

    Attributes:
        steps: of signed ascent, 0 or more; 0 draws speckle at random.
    """

    ball: Ball = Echo()

    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        return random_numbers(image, image[0].numel(), seeds)

    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        noise = no_louder(self.ball.eps * normal(numbers).view_as(image), self.ball.eps)
        return Rendered((image * (1 + noise)).clamp(0, 1))
