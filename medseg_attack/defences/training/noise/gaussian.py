"""Training on images with Gaussian noise."""

from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import require
from medseg_attack.numerics.samples import draw
from medseg_attack.registry import register
from medseg_attack.types import Image


@register("gaussian", kind="defence", cost="1 forward, 1 backward", attacked_with="strongest")
@dataclass(frozen=True)
class Gaussian(TrainingDefence):
    """Training images get Gaussian noise, which is not cut to [0, 1] (Zantedeschi et al., arXiv 1707.06728).

    It is no defence against the worst case. Randomised smoothing certifies models that were trained so.

    Attributes:
        sigma: standard deviation of the noise in [0, 1] of the window, 0 or more.

    Raises:
        InputError: `sigma` is below 0.
    """

    by_parts = True

    sigma: float = 0.1

    def __post_init__(self) -> None:
        require(self, sigma=0)

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        return step.loss(image + self.sigma * draw(torch.randn, image, step.seeds), target)
