"""Non-local means."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medseg_attack.defences.input_layers import InputDefence
from medseg_attack.errors import require
from medseg_attack.numerics.neighbourhoods import box_mean, gaussian_filter, neighbours, require_odd
from medseg_attack.registry import register
from medseg_attack.types import Image


@register(
    "nlm",
    kind="defence",
    paper="Buades et al., CVPR 2005; Xu et al., NDSS 2018, arXiv 1704.01155",
    cost="1 forward",
    attacked_with="pgd(steps=40)",
)
@dataclass(frozen=True)
class NonLocalMeans(InputDefence):
    """The mean of the pixels around each one, weighed by how alike their patches are (Buades et al., CVPR 2005).

    Attributes:
        strength: difference of two patches, root of the mean square, at which a weight falls to 1/e; above 0, in
            [0, 1] of the window.
        patch: side of a patch in pixels, odd.
        search: side of the window that is searched in pixels, odd; the paper on squeezing has 11 and 13.

    Raises:
        InputError: a field is out of range.
    """

    strength: float = 0.05
    patch: int = 3
    search: int = 7

    def __post_init__(self) -> None:
        require_odd("nlm", patch=self.patch, search=self.search)
        require(self, strength="(0, inf)")

    def __call__(self, image: Image, seeds: Sequence[int]) -> Image:
        total, weights = torch.zeros_like(image), torch.zeros_like(image)
        for _, shifted in neighbours(image, self.search):
            # what a weight needs is computed again in the backward pass: it would be kept for every offset
            share, weight = (
                checkpoint(self._weighted, image, shifted, use_reentrant=False)
                if image.requires_grad and torch.is_grad_enabled()
                else self._weighted(image, shifted)
            )
            total, weights = total + share, weights + weight
        return total / weights

    def _weighted(self, image: Image, shifted: Image) -> tuple[Tensor, Tensor]:
        difference = box_mean((shifted - image).square(), self.patch)
        weight = torch.exp(-difference / self.strength**2)
        return weight * shifted, weight

    def smooth(self, image: Image, seeds: Sequence[int]) -> Image:
        return gaussian_filter(image, 1.0)
