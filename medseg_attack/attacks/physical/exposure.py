"""Exposure: a bracket of brighter and darker versions of an image, mixed with smooth weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg_attack.attacks.physical.ascent import Numbers, Parametrised, Rendered, random_numbers
from medseg_attack.errors import require
from medseg_attack.numerics.fields import smooth
from medseg_attack.numerics.samples import draw
from medseg_attack.numerics.stored_values import FLOAT32_SLACK
from medseg_attack.registry import register
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.types import Ball, Image, Objective, PerSample

BRACKET = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of the ball's stops
CONTRAST = 6.0  # of the weights' logits: all of it in one exposure leaves the others less than 1 % each


@register("stops", kind="ball")
@dataclass(frozen=True)
class ExposureStops(Ball):
    """Every pixel may be brightened or darkened by up to `eps` stops, a factor of 2 each.

    Attributes:
        eps: largest change of exposure, in stops, 0 or more.
        half_width: distance in pixels, 0 or more, from which a pixel may take the value of a neighbour, so exposed,
            unless `eps` is 0.

    Raises:
        InputError: `half_width` is below 0.
    """

    unit = "stops"

    eps: float = 0.5
    half_width: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, half_width=0)

    def step(self, grad: Image, image: Image) -> Image:
        return image * (2 ** (self.eps * grad.sign()) - 1)

    def project(self, x: Image, x0: Image) -> Image:
        low, high = self._around(x0)
        return x.clamp(low * 2**-self.eps, high * 2**self.eps).clamp(0, 1)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        return self.project(x0 * 2 ** (self.eps * (2 * draw(torch.rand, x0, seeds) - 1)), x0)

    def size(self, x: Image, x0: Image) -> PerSample:
        low, high = self._around(x0)
        up, down = (x - FLOAT32_SLACK).clamp(min=0) / high, low / (x + FLOAT32_SLACK)
        most = torch.maximum(
            torch.where(x > high + FLOAT32_SLACK, up, 1), torch.where(x < low - FLOAT32_SLACK, down, 1)
        )
        return most.flatten(1).amax(1).log2()

    def _around(self, x0: Image) -> tuple[Image, Image]:
        if not self.half_width or not self.eps:
            return x0, x0
        pool = F.max_pool2d if x0.ndim == 4 else F.max_pool3d
        width = 2 * self.half_width + 1
        return -pool(-x0, width, 1, self.half_width), pool(x0, width, 1, self.half_width)


@register("bef", kind="attack", cost="steps + 2 forward, steps backward", reaches="its ball", shown_by="bef(steps=4)")
@dataclass(frozen=True)
class Exposure(Parametrised):
    """Brighter and darker versions, fused with the weights that harm most (BEF; Cheng et al., arXiv 2009.09231).

    Five exposures, mixed at every pixel with non-negative weights that add up to 1 and change smoothly. The paper
    fuses Laplacian pyramids so that rough weights leave no seams; smooth ones leave none. A ball with a `half_width`
    gives every pixel kernels over its neighbours in each exposure in place of weights, as CBEF does (`cbef`).

    Attributes:
        order: number of control points of the weights along each axis, 4 or more.
        steps: of signed ascent, 0 or more; 0 draws weights at random.

    Raises:
        InputError: `order` is below 4.
    """

    ball: Ball = ExposureStops()
    order: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, order=4)

    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        taps = (2 * self._half_width + 1) * self.order
        return random_numbers(image, len(BRACKET) * taps ** (image.ndim - 2), seeds)

    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        grid = tuple(image.shape[2:])
        weights = numbers.view(len(image), -1, *(self.order for _ in grid))
        return Rendered(
            fused(torch.softmax(CONTRAST * smooth(weights, grid), 1), image, self.ball.eps, self._half_width)
        )

    @property
    def _half_width(self) -> int:
        ball = self.ball.unrestricted
        return ball.half_width if isinstance(ball, ExposureStops) else 0


def fused(weights: Tensor, image: Image, stops: float, half_width: int) -> Image:
    """The sum of the exposures of each neighbour in turn, times their weights."""
    axes = image.ndim - 2
    padded = F.pad(image, [half_width] * (2 * axes), mode="replicate")
    exposures = []
    for offset in product(range(2 * half_width + 1), repeat=axes):
        neighbour = padded
        for axis, shift in enumerate(offset, start=2):
            neighbour = neighbour.narrow(axis, shift, image.shape[axis])
        exposures += [(neighbour * 2 ** (stops * s)).clamp(max=1) for s in BRACKET]
    result = torch.zeros_like(image)
    for n, exposure in enumerate(exposures):
        result = result + weights[:, n : n + 1] * exposure
    return result


@register("cbef", kind="attack", cost="steps + 2 forward, steps backward", reaches="its ball", shown_by="cbef(steps=4)")
def cbef(
    ball: Ball = ExposureStops(half_width=1),
    objective: Objective = bce,
    steps: int = 20,
    step_size: float = 0.25,
    order: int = 8,
) -> Exposure:
    """Brighter and darker versions fused with kernels of 3 x 3 pixels (CBEF; Cheng et al., arXiv 2009.09231).

    Args:
        order: number of control points of the weights along each axis, 4 or more.
    """
    return Exposure(ball, objective, steps, step_size, order)
