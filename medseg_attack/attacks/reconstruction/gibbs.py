"""Zeros in the k-space of MRI: how much was measured, and how softly the rest is cut off."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.physical.ascent import Numbers, Parametrised, Rendered, random_numbers, require_ball
from medseg_attack.numerics.samples import TINY, length
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import OperationBall
from medseg_attack.types import Ball, Image, PerSample

ROUNDING = 1e-6  # of the length of an image: what float32 and its Fourier transform may add to a change
SHARPEST, SOFTEST = 0.01, 0.8  # width of the filter's edge, as a share of the half axis of k-space


@register("zero_filling", kind="ball")
@dataclass(frozen=True)
class ZeroFilling(OperationBall):
    """The change may be as long as zeros in the outer share `eps` of k-space along both axes of a slice make it.

    Attributes:
        eps: share of each half axis that may be zero, from 0 to 1.
    """

    unit = "share of k-space"
    budgets = "[0, 1]"

    eps: float = 0.3

    def size(self, x: Image, x0: Image) -> PerSample:
        """The least share whose zeros change the image as much."""
        order, energy = self._from_outside(x0)
        change = length(x.double() - x0.double()) - ROUNDING * length(x0.double())
        change = change.clamp(min=0)
        enough = energy.cumsum(1) >= change.square()[:, None]
        first = enough.to(torch.int8).argmax(1)
        share = 1 - order[first]
        return torch.where(change > 0, torch.where(enough.any(1), share, torch.inf), 0.0).to(x0)

    def radius(self, image: Image) -> PerSample:
        order, energy = self._from_outside(image)
        return (energy * (order >= 1 - self.eps)).sum(1).sqrt().to(image)

    def _from_outside(self, x0: Image) -> tuple[Float[Tensor, "f"], Float[Tensor, "b f"]]:
        """The frequencies of each square ring of k-space, the highest first, and the image's energy in it."""
        radius = square_radius(tuple(x0.shape[-2:])).to(x0.device)
        rings, index = torch.unique(radius, return_inverse=True)
        power = torch.fft.fft2(x0.double(), norm="ortho").abs().square().flatten(1, -3).sum(1).flatten(1)
        energy = power.new_zeros(len(x0), len(rings)).index_add(1, index.flatten(), power)
        return rings.flip(0), energy.flip(1)


def half_axes(grid: tuple[int, ...]) -> tuple[Float[Tensor, "h"], Float[Tensor, "w"]]:
    """Distances from the middle of k-space along rows and columns, as shares of the half axis, in (0, 1]."""
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64).abs() for n in grid)
    return rows / rows.max().clamp(min=TINY), columns / columns.max().clamp(min=TINY)


def square_radius(grid: tuple[int, ...]) -> Float[Tensor, "h w"]:
    """The larger of the two distances."""
    rows, columns = half_axes(grid)
    return torch.maximum(rows[:, None], columns[None])


@register(
    "gibbs",
    kind="attack",
    cost="steps + 2 forward, steps backward",
    paper="Byra et al. 2020 (attack on a reconstruction, of ultrasound)",
    reaches="its ball",
    shown_by="gibbs(steps=4)",
)
@dataclass(frozen=True)
class Gibbs(Parametrised):
    """The zeros and the filter in k-space that harm most: blur, and Gibbs' ringing where the cut is sharp.

    It is the attack of Byra et al. 2020 on settings of a reconstruction, as MRI has it: how far k-space is measured
    along either axis of a slice, and how wide the edge of the filter is that ends it.

    Attributes:
        ball: zero_filling(0.3).
        steps: of signed ascent, 0 or more; 0 draws settings at random.
    """

    ball: Ball = ZeroFilling()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ball(self.ball, ZeroFilling, "the ball zero_filling for gibbs", "zero_filling(0.3)")

    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        return random_numbers(image, 3, seeds)

    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        share = (numbers + 1) / 2
        width = SHARPEST + (SOFTEST - SHARPEST) * share[:, 2:3]
        lines = [line.to(image)[None] for line in half_axes(tuple(image.shape[-2:]))]
        # 1 up to the edge, from there down to 0 over the width; nothing is cut where the share is 0
        rows, columns = (
            ((1 - self.ball.eps * share[:, axis : axis + 1] - line) / width + 1).clamp(0, 1)
            for axis, line in enumerate(lines)
        )
        window = (rows[:, :, None] * columns[:, None]).view(
            len(image), *(1 for _ in image.shape[1:-2]), *image.shape[-2:]
        )
        return Rendered(torch.fft.ifft2(torch.fft.fft2(image) * window).real.clamp(0, 1))
