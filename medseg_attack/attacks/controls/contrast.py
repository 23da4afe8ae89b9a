"""Less contrast: every pixel nearer to the mean of its image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.controls.one_level import OneLevel
from medseg_attack.attacks.physical.ascent import require_ball
from medseg_attack.numerics.samples import draw, widen
from medseg_attack.numerics.stored_values import FLOAT32_SLACK
from medseg_attack.registry import register
from medseg_attack.types import Ball, Image, PerSample


@register("contrast_loss", kind="ball")
@dataclass(frozen=True)
class ContrastLoss(Ball):
    """Every pixel may go up to a share `eps` of the way to the mean of its channel.

    Rounding towards the untouched image keeps a pixel in the ball. What float32 loses of a difference counts as none.

    Attributes:
        eps: from 0 to 1; 1 allows an image of one intensity.
    """

    unit = "share of the contrast"
    budgets = "[0, 1]"

    eps: float = 0.5

    def step(self, grad: Image, image: Image) -> Image:
        way = mean_of(image) - image
        return torch.where(grad * way > 0, self.eps * way, 0.0)

    def project(self, x: Image, x0: Image) -> Image:
        end = x0 + self.eps * (mean_of(x0) - x0)
        return torch.maximum(torch.minimum(x, torch.maximum(x0, end)), torch.minimum(x0, end)).clamp(0, 1)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        return self.project(x0 + draw(torch.rand, x0, seeds) * self.eps * (mean_of(x0) - x0), x0)

    def size(self, x: Image, x0: Image) -> PerSample:
        way = mean_of(x0) - x0
        change = ((x - x0).abs() - FLOAT32_SLACK).clamp(min=0)
        backwards = (x - x0) * way < 0
        share = torch.where(change > 0, torch.where(backwards, torch.inf, change / way.abs()), 0.0)
        return share.flatten(1).amax(1)


def mean_of(image: Image) -> Image:
    """The mean of each channel, at every pixel."""
    return image.mean(tuple(range(2, image.ndim)), keepdim=True).expand_as(image)


@register(
    "contrast",
    kind="attack",
    cost="bisections + 1 + (bisections >= 1) forward, 0 backward",
    threat="no model",
    paper="Taghanaki et al., MLCN 2018 (contrast reduction)",
    reaches="its ball",
)
@dataclass(frozen=True)
class Contrast(OneLevel):
    """Less contrast, `(1 - t) x + t mean(x)`: a change that everybody sees and no attacker chose (Taghanaki 2018).

    It is a control. With `bisections` it is also their decision-based attack: the least loss that halves the Dice.

    Attributes:
        ball: contrast_loss(0.5); 1 leaves an image of one intensity.
        bisections: bisections in search of the least loss that halves the Dice, 0 or more; 0 takes all of it.
    """

    ball: Ball = ContrastLoss()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ball(self.ball, ContrastLoss, "the ball contrast_loss for contrast", "contrast_loss(0.5)")

    def changed(self, image: Image, level: PerSample) -> Image:
        return image + widen(level.to(image), image) * (mean_of(image) - image)
