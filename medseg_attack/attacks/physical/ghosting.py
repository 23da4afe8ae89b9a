"""Ghosts of an error that repeats every few lines of k-space."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.physical.ascent import Numbers, Parametrised, Rendered, random_numbers
from medseg_attack.attacks.physical.scanner_noise import rms
from medseg_attack.errors import require
from medseg_attack.numerics.samples import TINY, widen
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import LengthBall
from medseg_attack.types import Ball, Image, PerSample


@register("ghost", kind="ball")
@dataclass(frozen=True)
class Ghost(LengthBall):
    """The root mean square of the change may be `eps` times that of the image: a ghost-to-signal ratio.

    Attributes:
        eps: largest ratio, 0 or more.
    """

    unit = "ghost-to-signal ratio"

    eps: float = 0.1

    def step(self, grad: Image, image: Image) -> Image:
        return self.eps * grad * widen(rms(image) / (rms(grad) + TINY), grad)

    def shrink(self, x: Image, x0: Image) -> PerSample:
        return self.eps * rms(x0) / (rms(x - x0) + TINY)

    def size(self, x: Image, x0: Image) -> PerSample:
        change, signal = rms(x - x0), rms(x0)
        return torch.where(change > 0, change / signal, 0)


@register(
    "ghosting",
    kind="attack",
    cost="steps + 2 forward, steps backward",
    reaches="its ball",
    shown_by="ghosting(steps=4)",
)
@dataclass(frozen=True)
class Ghosting(Parametrised):
    """The ghosts that harm most: errors that repeat every few lines of k-space, as pulsation leaves them.

    Each of `period` groups of lines has its own complex error, of magnitude `eps` at most; the image shows fainter
    copies of itself, a `period`-th of its height apart.

    Attributes:
        period: number of lines after which the error repeats, 2 or more.
        steps: of signed ascent, 0 or more; 0 draws errors at random.

    Raises:
        InputError: `period` is below 2.
    """

    ball: Ball = Ghost()
    period: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, period=2)

    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        return random_numbers(image, 2 * self.period, seeds)

    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        real, imaginary = (self.ball.eps / math.sqrt(2) * numbers).chunk(2, dim=1)
        error = torch.complex(real, imaginary)[:, torch.arange(image.shape[-2]) % self.period]
        lines = torch.fft.fft(image, dim=-2, norm="ortho")
        factor = 1 + error.view(len(image), *(1 for _ in image.shape[1:-2]), -1, 1)
        return Rendered(torch.fft.ifft(lines * factor, dim=-2, norm="ortho").abs().clamp(max=1))
