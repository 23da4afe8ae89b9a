"""Fewer grey levels (feature squeezing)."""

from collections.abc import Sequence
from dataclasses import dataclass

from medseg_attack.defences.input_layers import InputDefence
from medseg_attack.errors import require
from medseg_attack.registry import register
from medseg_attack.types import Image


@register(
    "bit_depth",
    kind="defence",
    paper="Xu et al., NDSS 2018, arXiv 1704.01155",
    cost="1 forward",
    attacked_with="bpda(pgd(steps=40))",
)
@dataclass(frozen=True)
class BitDepth(InputDefence):
    """Intensities rounded to 2^bits levels, from 0 to 1 (Xu et al., arXiv 1704.01155).

    Its gradient is 0: the textbook case of a number that looks like robustness.

    Attributes:
        bits: 1 to 16. Guo et al. (arXiv 1711.00117) have one level more for the same name.

    Raises:
        InputError: `bits` is out of range.
    """

    differentiable = False

    bits: int = 4

    def __post_init__(self) -> None:
        require(self, bits="[1, 16]")

    def __call__(self, image: Image, seeds: Sequence[int]) -> Image:
        steps = 2**self.bits - 1
        result: Image = (image * steps).round() / steps
        return result
