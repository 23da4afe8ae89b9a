"""Settings of an ultrasound machine: dynamic range and gain over depth."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.physical.ascent import Numbers, Parametrised, Rendered, random_numbers, require_ball
from medseg_attack.errors import require
from medseg_attack.numerics.fields import smooth
from medseg_attack.numerics.samples import draw
from medseg_attack.numerics.stored_values import FLOAT32_SLACK
from medseg_attack.registry import register
from medseg_attack.types import Ball, Image, PerSample


@register("decibels", kind="ball")
@dataclass(frozen=True)
class Decibels(Ball):
    """Every pixel of a log-compressed image may become louder or quieter by `eps` dB; black stays black.

    What lies below the dynamic range is not known, so that black cannot be brought back.

    Attributes:
        eps: largest change of a pixel in dB, 0 or more.
        range_db: dynamic range of the image: black is so many dB below white; above 0.

    Raises:
        InputError: `range_db` is not above 0.
    """

    unit = "dB"

    eps: float = 3.0
    range_db: float = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, range_db="(0, inf)")

    @property
    def radius(self) -> float:
        """The largest change of a pixel as a share of the intensity range."""
        return self.eps / self.range_db

    def step(self, grad: Image, image: Image) -> Image:
        return self.radius * grad.sign() * (image > 0)

    def project(self, x: Image, x0: Image) -> Image:
        near = x.clamp(x0 - self.radius, x0 + self.radius).clamp(0, 1)
        return near * (x0 > 0)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        return self.project(x0 + self.radius * (2 * draw(torch.rand, x0, seeds) - 1), x0)

    def size(self, x: Image, x0: Image) -> PerSample:
        change = ((x - x0).abs() - FLOAT32_SLACK).clamp(min=0) * self.range_db
        return change.where((x0 > 0) | (change == 0), change.new_tensor(float("inf"))).flatten(1).amax(1)


@register(
    "log_compression",
    kind="attack",
    cost="steps + 2 forward, steps backward",
    paper="Byra et al. 2020 (attack on the reconstruction of ultrasound)",
    reaches="its ball",
    shown_by="log_compression(steps=4)",
)
@dataclass(frozen=True)
class LogCompression(Parametrised):
    """The dynamic range and the gain over depth of an ultrasound image that harm most (Byra et al. 2020).

    An image of log-compressed echoes is `1 + d / R` for echoes of d dB below white and a dynamic range R. The attack
    sets R and a smooth gain along the rows, half of the budget each. It has no raw data: what is black stays black.
    Byra et al. ask the model for scores alone (ZOO); here the gradient of these few numbers is followed.

    Attributes:
        ball: decibels(3).
        knots: control points of the gain over depth, 4 or more.
        steps: of signed ascent, 0 or more; 0 draws settings at random.

    Raises:
        InputError: `knots` is below 4.
    """

    ball: Ball = Decibels()
    knots: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, knots=4)
        require_ball(self.ball, Decibels, "the ball decibels for log_compression", "decibels(3)")

    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        return random_numbers(image, 1 + self.knots, seeds)

    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        ball = self.ball.unrestricted
        assert isinstance(ball, Decibels)
        one = (len(image), *(1 for _ in image.shape[1:]))
        stretch = 1 + ball.radius / 2 * numbers[:, 0].view(one)
        gain = ball.radius / 2 * smooth(numbers[:, None, 1:], (image.shape[-2],))
        gain = gain.view(len(image), *(1 for _ in image.shape[1:-2]), -1, 1)
        return Rendered((1 + (image - 1) * stretch + gain).clamp(0, 1))
