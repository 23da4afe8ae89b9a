"""Speckle at the outlines that a model predicts, the worst of many draws."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from medseg_attack.attacks.judging import judge, judge_prediction
from medseg_attack.errors import require
from medseg_attack.numerics.fields import blurred
from medseg_attack.numerics.samples import TINY, draw, reseeded, widen
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import shared_out
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model

BAND = 3.0  # standard deviation of the band around an outline, in pixels
GRAIN = 11  # width of the kernel that gives speckle its grain, in pixels: a deviation of about 2
CUT = 3.0  # deviations of the speckle that reach the edge of the ball


@register(
    "ssaa",
    kind="attack",
    cost="queries forward, 0 backward",
    threat="queries (masks)",
    reaches="its ball",
    shown_by="ssaa(queries=90)",
)
@dataclass(frozen=True)
class SSAA:
    """Speckle amplified at the predicted outlines, the worst of many draws (SSAA; arXiv 2602.21452).

    `x + eps * w * x * s`: s is speckle with a grain of 2 pixels, between -1 and 1, and w a Gaussian band of 3 pixels
    around the outlines that the model draws on the untouched image. In a ball that bounds a length, such as l2,
    `w * x * s` is scaled to that length. Nothing is learned from one draw to the next. The formulas are reconstructed
    from the abstract. An image on which nothing is predicted gets speckle everywhere.

    Attributes:
        queries: number of times that the model is asked about each image, the untouched one included, 2 or more.

    Raises:
        InputError: `queries` is below 2.
    """

    ball: Ball = Linf()
    queries: int = 200

    def __post_init__(self) -> None:
        require(self, queries=2)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        with torch.no_grad():
            pred = model.decide(model(image))
        worst = judge_prediction(model, self.ball, image, image, pred, target)
        weight = outline_band(pred[:, model.task.scored_channels]).to(image)
        for query in range(1, self.queries):
            change = weight * image * speckle(image, reseeded(seeds, query))
            x = self.ball.project(image + shared_out(self.ball, change, image), image)
            worst |= judge(model, self.ball, x, image, target)
        return worst


def outline_band(pred: Mask) -> Float[Tensor, "b 1 *s"]:
    """A Gaussian of the distance to the next outline of any class; 1 everywhere where there is none."""
    bands = []
    for masks in pred.cpu().numpy():
        edges = [mask ^ ndimage.binary_erosion(mask, border_value=1) for mask in masks]
        outline = sum(edges[1:], edges[0])
        distance = ndimage.distance_transform_edt(~outline) if outline.any() else 0.0 * outline
        bands.append(torch.from_numpy(distance).div(BAND).square().mul(-0.5).exp())
    return torch.stack(bands)[:, None]


def speckle(image: Image, seeds: Sequence[int]) -> Image:
    """Noise with a grain of some pixels, between -1 and 1, the same in all channels."""
    grain = blurred(draw(torch.randn, image[:, :1], seeds), GRAIN)
    deviation = grain.flatten(1).square().mean(1).sqrt()
    return (grain / (CUT * widen(deviation, grain) + TINY)).clamp(-1, 1).expand_as(image)
