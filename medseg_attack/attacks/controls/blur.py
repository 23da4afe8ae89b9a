"""Blur in plane by a Gaussian."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.controls.one_level import OneLevel
from medseg_attack.attacks.physical.ascent import require_ball
from medseg_attack.numerics.fields import cosines
from medseg_attack.numerics.samples import widen
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import OperationBall
from medseg_attack.types import Ball, Image, PerSample

WIDEST = 512.0  # standard deviation in pixels that is told from an image of one intensity
BISECTIONS = 60  # of a deviation: to the last bit


@register("blur_width", kind="ball")
@dataclass(frozen=True)
class BlurWidth(OperationBall):
    """The change may be as long as a Gaussian blur in plane of deviation `eps` makes it.

    The wider a blur, the longer its change. So the size of a change is the deviation of the blur whose change is as
    long.

    Attributes:
        eps: standard deviation of the Gaussian in pixels, 0 or more.
    """

    unit = "px"

    eps: float = 1.0

    def size(self, x: Image, x0: Image) -> PerSample:
        power, change = _power(x0), (x - x0).double().flatten(1).square().sum(1)
        low, high = torch.zeros_like(change), torch.full_like(change, WIDEST)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            longer = _square_of_change(power, middle) > change
            low, high = torch.where(longer, low, middle), torch.where(longer, middle, high)
        result = torch.where(change > 0, torch.where(low >= WIDEST * (1 - 1e-9), torch.inf, low), 0.0)
        return result.to(x0)

    def radius(self, image: Image) -> PerSample:
        level = image.new_full((len(image),), self.eps, dtype=torch.float64)
        return _square_of_change(_power(image), level).sqrt().to(image)


def _spectrum(image: Image) -> Tensor:
    """The cosine transform in plane, in which blurs with mirrored borders are products."""
    rows, columns = (cosines(n).to(image) for n in image.shape[-2:])
    spectrum: Tensor = rows @ image @ columns.T
    return spectrum


def _power(image: Image) -> Float[Tensor, "b h w"]:
    """Squares of the in-plane cosine transform, summed over all else."""
    power: Tensor = _spectrum(image.double()).square().flatten(1, -3).sum(1)
    return power


def _exponent(shape: tuple[int, ...], like: Tensor) -> Float[Tensor, "h w"]:
    """Minus the logarithm of what a blur of deviation 1 leaves of each frequency."""
    rows, columns = (1 - torch.cos(torch.pi * torch.arange(n, dtype=torch.float64) / n) for n in shape)
    return (rows[:, None] + columns[None]).to(like)


def _square_of_change(power: Float[Tensor, "b h w"], level: PerSample) -> PerSample:
    exponent = _exponent(tuple(power.shape[-2:]), power)
    lost = -torch.expm1(-widen(level.to(power).square(), power) * exponent)
    return (power * lost.square()).flatten(1).sum(1)


@register(
    "blur",
    kind="attack",
    cost="bisections + 1 + (bisections >= 1) forward, 0 backward",
    threat="no model",
    paper="Taghanaki et al., MLCN 2018 (Gaussian blur)",
    reaches="its ball",
)
@dataclass(frozen=True)
class Blur(OneLevel):
    """A Gaussian blur in plane: a change that everybody sees and no attacker chose (Taghanaki 2018).

    It is a control. With `bisections` it is also their decision-based attack: the least blur that halves the Dice. The
    kernel is Lindeberg's discrete Gaussian, with mirrored borders: its variance is exact and no weight is negative.

    Attributes:
        ball: blur_width(1.0), standard deviation in pixels.
        bisections: bisections in search of the least blur that halves the Dice, 0 or more; 0 blurs as far as it may.
    """

    ball: Ball = BlurWidth()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ball(self.ball, BlurWidth, "the ball blur_width for blur", "blur_width(1)")

    def changed(self, image: Image, level: PerSample) -> Image:
        rows, columns = (cosines(n).to(image) for n in image.shape[-2:])
        kept = torch.exp(-widen(level.to(image).square(), image) * _exponent(tuple(image.shape[-2:]), image))
        return (rows.T @ (_spectrum(image) * kept) @ columns).clamp(0, 1)
