"""A Gaussian blur."""

from collections.abc import Sequence
from dataclasses import dataclass

from medseg_attack.defences.input_layers import InputDefence
from medseg_attack.errors import require
from medseg_attack.numerics.neighbourhoods import gaussian_filter
from medseg_attack.registry import register
from medseg_attack.types import Image


@register(
    "gaussian_blur",
    kind="defence",
    paper="Xu et al., NDSS 2018, arXiv 1704.01155",
    cost="1 forward",
    attacked_with="pgd(steps=40)",
)
@dataclass(frozen=True)
class GaussianBlur(InputDefence):
    """The image convolved with a Gaussian along all axes.

    A wave of frequency w is weakened by exp(-(sigma w)^2 / 2); an attacker moves to lower frequencies.

    Attributes:
        sigma: standard deviation in pixels, above 0.

    Raises:
        InputError: `sigma` is not above 0.
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        require(self, sigma="(0, 100)")

    def __call__(self, image: Image, seeds: Sequence[int]) -> Image:
        return gaussian_filter(image, self.sigma)
