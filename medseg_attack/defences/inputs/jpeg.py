"""JPEG, encoded and decoded again."""

from collections.abc import Sequence
from dataclasses import dataclass

from medseg_attack.defences.input_layers import InputDefence
from medseg_attack.errors import require
from medseg_attack.numerics.jpeg import jpeg
from medseg_attack.registry import register
from medseg_attack.types import Image


@register(
    "jpeg",
    kind="defence",
    paper="Dziugaite et al., arXiv 1608.00853",
    cost="1 forward",
    attacked_with="bpda(pgd(steps=40))",
)
@dataclass(frozen=True)
class Jpeg(InputDefence):
    """Images written as JPEG and read again, channel by channel in 8 bits (Dziugaite et al., arXiv 1608.00853).

    A scan is written slice by slice, along its first axis. Intensities are rounded to 8 bits, where some released code
    cuts them off.

    Attributes:
        quality: 1 to 95, of libjpeg; Guo et al. (arXiv 1711.00117) take 75.

    Raises:
        InputError: `quality` is out of range.
    """

    differentiable = False

    quality: int = 75

    def __post_init__(self) -> None:
        require(self, quality="[1, 95]")

    def __call__(self, image: Image, seeds: Sequence[int]) -> Image:
        return jpeg(image, self.quality)
