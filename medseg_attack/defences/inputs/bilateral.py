"""The bilateral filter."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.defences.input_layers import InputDefence
from medseg_attack.errors import require
from medseg_attack.numerics.neighbourhoods import gaussian_filter, neighbours, require_odd
from medseg_attack.registry import register
from medseg_attack.types import Image


@register(
    "bilateral", kind="defence", paper="Tomasi & Manduchi, ICCV 1998", cost="1 forward", attacked_with="pgd(steps=40)"
)
@dataclass(frozen=True)
class Bilateral(InputDefence):
    """The mean of each pixel's neighbourhood, weighed by nearness in place and in intensity (Tomasi, ICCV 1998).

    Attributes:
        size: side of the window in pixels, odd.
        sigma_intensity: standard deviation of the weight of intensities, above 0, in [0, 1] of the window.
        sigma_space: standard deviation of the weight of places in pixels, above 0.

    Raises:
        InputError: a field is out of range.
    """

    size: int = 5
    sigma_intensity: float = 0.1
    sigma_space: float = 3.0

    def __post_init__(self) -> None:
        require_odd("bilateral", size=self.size)
        require(self, sigma_intensity="(0, inf)", sigma_space="(0, inf)")

    def __call__(self, image: Image, seeds: Sequence[int]) -> Image:
        total, weights = torch.zeros_like(image), torch.zeros_like(image)
        for offset, shifted in neighbours(image, self.size):
            near = sum(step**2 for step in offset) / (2 * self.sigma_space**2)
            weight = torch.exp(-near - (shifted - image).square() / (2 * self.sigma_intensity**2))
            total, weights = total + weight * shifted, weights + weight
        return total / weights

    def smooth(self, image: Image, seeds: Sequence[int]) -> Image:
        return gaussian_filter(image, 1.0)
