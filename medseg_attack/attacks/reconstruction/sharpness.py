"""The kernel of a CT reconstruction: how much of each frequency it keeps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.physical.ascent import Numbers, Parametrised, Rendered, random_numbers, require_ball
from medseg_attack.errors import require
from medseg_attack.numerics.fields import splines
from medseg_attack.numerics.samples import length
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import OperationBall
from medseg_attack.types import Ball, Image, PerSample

BINS = 256  # of the frequencies between which a curve is looked up


@register("kernel_gain", kind="ball")
@dataclass(frozen=True)
class KernelGain(OperationBall):
    """The change may be as long as gains of frequencies in plane between exp(-eps) and exp(eps) can make it.

    The mean of a slice stays. So the size of a change of length d is log(1 + d / m), with m the length of the image
    without the means of its slices.

    Attributes:
        eps: largest logarithm of a gain, 0 or more; 0.3 is a factor of 1.35.
    """

    unit = "logarithm of a gain"

    eps: float = 0.3

    def size(self, x: Image, x0: Image) -> PerSample:
        change, most = length(x - x0), length(detail(x0))
        return torch.where(change > 0, torch.log1p(change / most), 0.0)

    def radius(self, image: Image) -> PerSample:
        return torch.expm1(image.new_tensor(self.eps)) * length(detail(image))


def detail(image: Image) -> Image:
    """The image without the mean of each slice."""
    return image - image.mean((-2, -1), keepdim=True)


@register(
    "sharpness",
    kind="attack",
    cost="steps + 2 forward, steps backward",
    paper="Byra et al. 2020 (attack on a reconstruction, of ultrasound)",
    reaches="its ball",
    shown_by="sharpness(steps=4)",
)
@dataclass(frozen=True)
class Sharpness(Parametrised):
    """The reconstruction kernel that harms most: a smooth gain of frequencies in plane, the same in all directions.

    It is the attack of Byra et al. 2020 on settings of a reconstruction, as CT has it: a soft kernel damps high
    frequencies, a sharp one raises them with the noise.

    Attributes:
        ball: kernel_gain(0.3).
        knots: control points of the gain's logarithm over frequency, 4 or more; gain 1 at frequency 0.
        steps: of signed ascent, 0 or more; 0 draws a kernel at random.

    Raises:
        InputError: `knots` is below 4.
    """

    ball: Ball = KernelGain()
    knots: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, knots=4)
        require_ball(self.ball, KernelGain, "the ball kernel_gain for sharpness", "kernel_gain(0.3)")

    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        return random_numbers(image, self.knots, seeds)

    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        gain = radial_gain(self.ball.eps * numbers, tuple(image.shape[-2:]))
        gain = gain.view(len(image), *(1 for _ in image.shape[1:-2]), *image.shape[-2:])
        return Rendered(torch.fft.ifft2(torch.fft.fft2(image) * gain).real.clamp(0, 1))


def radial_gain(curve: Float[Tensor, "b p"], grid: tuple[int, ...]) -> Float[Tensor, "b h w"]:
    """The exponential of a spline over the distance from frequency 0, where it is 1; up to the corner of k-space."""
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in grid)
    radius = torch.hypot(rows[:, None], columns[None]) / 0.5**0.5
    values = curve @ splines(BINS, curve.shape[1]).to(curve).T
    nearest = (radius * (BINS - 1)).round().long().flatten().to(curve.device)
    gain = values[:, nearest].view(len(curve), *grid).exp()
    return torch.where(radius.to(curve) > 0, gain, 1.0)
