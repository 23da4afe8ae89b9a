"""Exposures fused by Laplacian pyramids."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.physical.ascent import Numbers, Parametrised, Rendered, random_numbers, require_ball
from medseg_attack.attacks.physical.exposure import BRACKET, CONTRAST, ExposureStops
from medseg_attack.errors import require
from medseg_attack.numerics.fields import smooth, stretched
from medseg_attack.registry import register
from medseg_attack.types import Ball, Image


@register(
    "bef_pyramid",
    kind="attack",
    cost="steps + 2 forward, steps backward",
    paper="Cheng et al., arXiv 2009.09231",
    reaches="its ball",
    shown_by="bef_pyramid(steps=4)",
)
@dataclass(frozen=True)
class ExposurePyramid(Parametrised):
    """`bef` with the paper's fusion: one set of weights for each level of Laplacian pyramids (arXiv 2009.09231).

    `x' = sum_j up(sum_i W_i^j L^j(X_i))`: five exposures X_i, non-negative weights W that add up to 1. So a coarse
    level may be brightened while details come from a dark exposure. What leaves the exposures of a pixel is cut to the
    ball. Weights are smooth, in place of the paper's smoothness penalty.

    Attributes:
        ball: stops(0.5), without a `half_width`.
        order: number of control points of the weights along each axis, 4 or more.
        levels: of the pyramid, 1 or more; 1 is `bef`.
        steps: of signed ascent, 0 or more; 0 draws weights at random.

    Raises:
        InputError: `order` or `levels` is out of range.
    """

    ball: Ball = ExposureStops()  # noqa: RUF009 - a frozen value
    order: int = 6
    levels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, order=4, levels=1)
        require_ball(self.ball, ExposureStops, "the ball stops for bef_pyramid", "stops(0.5)")

    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        return random_numbers(image, self.levels * len(BRACKET) * self.order ** (image.ndim - 2), seeds)

    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        points = numbers.view(len(image), self.levels, len(BRACKET), *(self.order for _ in image.shape[2:]))
        exposures = [(image * 2 ** (self.ball.eps * stops)).clamp(max=1) for stops in BRACKET]
        pyramids = [laplacian(exposure, self.levels) for exposure in exposures]
        result: Tensor | None = None
        for level in reversed(range(self.levels)):
            grid = tuple(pyramids[0][level].shape[2:])
            weights = torch.softmax(CONTRAST * smooth(points[:, level], grid), 1)
            fused = torch.stack([weights[:, i : i + 1] * each[level] for i, each in enumerate(pyramids)]).sum(0)
            result = fused if result is None else fused + stretched(result, grid)
        assert result is not None
        return Rendered(result)


def laplacian(image: Image, levels: int) -> list[Float[Tensor, "b c *t"]]:
    """Details of each level, the finest first, and the coarsest level as it is; each is half as fine as the last.

    Stretched and added from the coarsest to the finest they are the image again, exactly.
    """
    pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    details = []
    for _ in range(levels - 1):
        coarse = pool(image, 2, ceil_mode=True) if min(image.shape[2:]) > 1 else image
        details.append(image - stretched(coarse, tuple(image.shape[2:])))
        image = coarse
    return [*details, image]
