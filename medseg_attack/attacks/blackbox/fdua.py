"""Random phases of the middle frequencies, the worst of many draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.attacks.controls.noise import Noise
from medseg_attack.attacks.judging import judge
from medseg_attack.attacks.physical.ascent import require_ball
from medseg_attack.errors import require
from medseg_attack.numerics.samples import TINY, draw, length, reseeded
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import OperationBall
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model, PerSample

BAND = (0.1, 0.4)  # of the Nyquist frequency


@register("phase", kind="ball")
@dataclass(frozen=True)
class Phase(OperationBall):
    """The change may be as large as phases of the middle frequencies that turn by up to `eps` can make it.

    A turn by t moves a coefficient by 2 sin(t / 2) times its magnitude. So a change of length d counts as a turn of
    2 asin(d / (2 m)), where m is the length of the image's middle frequencies, 0.1 to 0.4 of Nyquist's.

    Attributes:
        eps: largest turn of a phase, in radians, from 0 to 3.14.
    """

    unit = "radians"
    budgets = "[0, 3.14]"

    eps: float = 0.5

    def radius(self, image: Image) -> PerSample:
        return 2 * math.sin(self.eps / 2) * length(middle(image))

    def size(self, x: Image, x0: Image) -> PerSample:
        change, most = length(x - x0), 2 * length(middle(x0))
        turn = 2 * torch.asin((change / (most + TINY)).clamp(max=1))
        return torch.where(change > most + 1e-6, torch.inf, torch.where(change > 0, turn, 0.0))


def middle(image: Image) -> Image:
    """The middle frequencies of the image."""
    axes = tuple(range(2, image.ndim))
    part: Tensor = torch.fft.ifftn(torch.fft.fftn(image, dim=axes) * in_band(image), dim=axes).real
    return part


def in_band(image: Image) -> Tensor:
    """Whether a frequency is a middle one, (*s)."""
    square = torch.zeros((), dtype=torch.float64)
    for n in image.shape[2:]:
        square = square[..., None] + (2 * torch.fft.fftfreq(n, dtype=torch.float64)).square()
    radius = square.sqrt()
    return ((radius >= BAND[0]) & (radius <= BAND[1])).to(image.device)


@register(
    "fdua",
    kind="attack",
    cost="queries forward, 0 backward",
    threat="queries (masks)",
    norm="radians",
    reaches="its ball",
    shown_by="fdua(queries=90)",
)
@dataclass(frozen=True)
class FDUA:
    """Phases of the middle frequencies turned at random, the worst of many draws (FDUA; arXiv 2602.21452).

    `X' = |X| exp(i (P + phi))`, phi uniform in [-eps, eps] for frequencies from 0.1 to 0.4 of Nyquist's, and odd, so
    that the image stays real. Magnitudes are kept, up to the cut at 0 and 1. The formulas are reconstructed from the
    abstract.

    Attributes:
        ball: phase(0.5), in radians.
        queries: number of times that the model is asked about each image, the untouched one included, 2 or more.

    Raises:
        InputError: `queries` is below 2, or the ball is not one of phases.
    """

    ball: Ball = Phase()
    queries: int = 200

    def __post_init__(self) -> None:
        require(self, queries=2)
        require_ball(self.ball, Phase, "the ball phase for fdua", "phase(0.5)")

    def control(self) -> Noise:
        """Noise as long as the largest change of phases."""
        return Noise(self.ball)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        worst = judge(model, self.ball, image, image, target)
        for query in range(1, self.queries):
            x = self.ball.project(turned(image, self.ball.eps, reseeded(seeds, query)), image)
            worst |= judge(model, self.ball, x, image, target)
        return worst


def turned(image: Image, radians: float, seeds: Sequence[int]) -> Image:
    """The image with random phases of its middle frequencies, up to so many radians; the same in all channels."""
    axes = tuple(range(2, image.ndim))
    phase = radians * (2 * draw(torch.rand, image[:, :1], seeds) - 1) * in_band(image)
    number = torch.arange(phase[0, 0].numel(), device=image.device).view(phase.shape[2:])[None, None]
    mirrored, mirror = _opposite(phase), _opposite(number)
    odd = torch.where(number < mirror, phase, torch.where(number > mirror, -mirrored, 0.0))
    spectrum = torch.fft.fftn(image, dim=axes)
    turned_image: Tensor = torch.fft.ifftn(spectrum * torch.polar(torch.ones_like(odd), odd), dim=axes).real
    return turned_image


def _opposite(x: Tensor) -> Tensor:
    """The values at minus each frequency."""
    axes = tuple(range(2, x.ndim))
    return x.flip(axes).roll((1,) * len(axes), axes)
