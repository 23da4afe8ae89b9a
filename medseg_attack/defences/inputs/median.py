"""The median of each pixel's neighbourhood."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.defences.input_layers import InputDefence
from medseg_attack.errors import require
from medseg_attack.numerics.neighbourhoods import box_mean, neighbours, require_odd
from medseg_attack.registry import register
from medseg_attack.types import Image


@register(
    "median",
    kind="defence",
    paper="Xu et al., NDSS 2018, arXiv 1704.01155",
    cost="1 forward",
    attacked_with="pgd(steps=40)",
)
@dataclass(frozen=True)
class Median(InputDefence):
    """The median of each pixel's neighbourhood, along all axes (Xu et al., arXiv 1704.01155).

    It passes its gradient to one pixel of each window, so nearly half of all pixels get none: that leads an attack
    well enough. Its stand-in is the mean of the same window.

    Attributes:
        size: side of the window in pixels, odd. The paper has 2, which moves the image by half a pixel.

    Raises:
        InputError: `size` is even.
    """

    size: int = 3

    def __post_init__(self) -> None:
        require(self)
        require_odd("median", size=self.size)

    def __call__(self, image: Image, seeds: Sequence[int]) -> Image:
        stacked = torch.stack([shifted for _, shifted in neighbours(image, self.size)], -1)
        return stacked.median(-1).values

    def smooth(self, image: Image, seeds: Sequence[int]) -> Image:
        return box_mean(image, self.size)
