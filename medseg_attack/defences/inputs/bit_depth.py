"""Grey levels that are rounded to fewer of them."""

from dataclasses import dataclass

from medseg_attack.defences.inputs.base import InputDefence
from medseg_attack.errors import require
from medseg_attack.registry import register
from medseg_attack.types import Image


@register("bit_depth", kind="defence", cost="1 forward", attacked_with="pgd")
@dataclass(frozen=True)
class BitDepth(InputDefence):
    """Intensities are rounded to the nearest of 2^bits levels from 0 to 1 (Xu et al., arXiv 1704.01155).

    Its gradient is 0 almost everywhere, which hides the model's from an attack that does not know it.

    Attributes:
        bits: 1 or more.
    """

    differentiable = False
    bits: int = 4

    def __post_init__(self) -> None:
        require(self, bits=1)

    def __call__(self, image: Image) -> Image:
        levels = float(2**self.bits - 1)
        return (image * levels).round() / levels
