"""Total-variation minimisation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.defences.input_layers import InputDefence
from medseg_attack.errors import require
from medseg_attack.numerics.neighbourhoods import gaussian_filter
from medseg_attack.numerics.samples import draw
from medseg_attack.registry import register
from medseg_attack.types import Image


@register(
    "tv",
    kind="defence",
    paper="Guo et al., ICLR 2018, arXiv 1711.00117",
    cost="1 forward",
    attacked_with="averaged(bpda(pgd(steps=40)))",
)
@dataclass(frozen=True)
class TotalVariation(InputDefence):
    """The image of least variation near the pixels that were kept (Guo et al., arXiv 1711.00117).

    It minimises `0.5 |M (z - x)|^2 + weight TV(z)`: M keeps random pixels, TV is the sum over pixels of the length of
    the differences along the axes (Rudin et al.). Chambolle and Pock's primal-dual steps; the paper has split Bregman.

    Attributes:
        weight: of the variation, 0 or more.
        dropped: share of the pixels that are dropped at random, in [0, 1).
        steps: primal-dual steps, 1 or more.

    Raises:
        InputError: a field is out of range.
    """

    weight: float = 0.03
    dropped: float = 0.5
    steps: int = 40

    def __post_init__(self) -> None:
        require(self, steps=1, weight=0, dropped="[0, 1)")

    @property
    def stochastic(self) -> bool:
        return self.dropped > 0

    @property
    def differentiable(self) -> bool:
        return self.dropped == 0  # a dropped pixel gets none in this draw, and some in the next

    def __call__(self, image: Image, seeds: Sequence[int]) -> Image:
        if self.weight == 0 and self.dropped == 0:
            return image
        kept = torch.ones_like(image)
        start = image
        if self.dropped:
            kept = (draw(torch.rand, image[:, :1], seeds) >= self.dropped).to(image).expand_as(image)
            weight = gaussian_filter(kept, 1.5).clamp(min=1e-3)
            start = gaussian_filter(image * kept, 1.5) / weight  # the mean of the pixels that are kept nearby
            start = kept * image + (1 - kept) * start
        return self._solved(image, kept, start).clamp(0, 1)

    def _solved(self, image: Image, kept: Tensor, start: Image) -> Image:
        axes = range(2, image.ndim)
        step = 1 / (4 * len(axes)) ** 0.5  # its square times the squared norm of the differences, 4 an axis, is 1
        z, ahead = start, start
        dual = [torch.zeros_like(image) for _ in axes]
        for _ in range(self.steps):
            dual = [p + step * _difference(ahead, axis) for p, axis in zip(dual, axes, strict=True)]
            length = (sum(p.square() for p in dual) + 1e-12) ** 0.5 if self.weight else None
            shrink = 0.0 if length is None else 1 / (length / self.weight).clamp(min=1)
            dual = [p * shrink for p in dual]
            back = sum(_adjoint(p, axis) for p, axis in zip(dual, axes, strict=True))
            new = (z - step * back + step * kept * image) / (1 + step * kept)
            ahead, z = 2 * new - z, new
        return z

    def smooth(self, image: Image, seeds: Sequence[int]) -> Image:
        return image


def _difference(x: Tensor, axis: int) -> Tensor:
    """Forward differences along an axis, 0 at its end."""
    n = x.shape[axis]
    return torch.cat(
        (x.narrow(axis, 1, n - 1) - x.narrow(axis, 0, n - 1), torch.zeros_like(x.narrow(axis, 0, 1))), axis
    )


def _adjoint(p: Tensor, axis: int) -> Tensor:
    """The transpose of `_difference`."""
    n = p.shape[axis]
    inner = p.narrow(axis, 0, n - 1)
    zero = torch.zeros_like(p.narrow(axis, 0, 1))
    return torch.cat((zero, inner), axis) - torch.cat((inner, zero), axis)
