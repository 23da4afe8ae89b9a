"""Random resizing and padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medseg_attack.defences.input_layers import GeometricDefence
from medseg_attack.errors import require
from medseg_attack.numerics.fields import stretched
from medseg_attack.registry import register
from medseg_attack.types import Image


@register(
    "resize_pad",
    kind="defence",
    paper="Xie et al., ICLR 2018, arXiv 1711.01991",
    cost="1 forward",
    attacked_with="averaged(pgd(steps=40))",
)
@dataclass(frozen=True)
class ResizePad(GeometricDefence):
    """Images enlarged by a random factor and put at a random place of a larger grid (Xie et al., arXiv 1711.01991).

    Masks come back: the answer is cut out and resized, as log-odds, to the image's grid. The frame repeats the border,
    where the paper has 0.

    Attributes:
        largest: side of the larger grid as a multiple of the image's, 1 or more; the paper's 299 to 331 are 1.1.

    Raises:
        InputError: `largest` is not in [1, 2].
    """

    largest: float = 1.1

    def __post_init__(self) -> None:
        require(self, largest="[1, 2]")

    @property
    def stochastic(self) -> bool:
        return self.largest > 1

    def __call__(self, image: Image, seeds: Sequence[int]) -> Float[Tensor, "b c *t"]:
        grid = tuple(image.shape[2:])
        return torch.cat([self._placed(image[i : i + 1], grid, seed) for i, seed in enumerate(seeds)])

    def back(
        self, log_odds: Float[Tensor, "b k *t"], grid: tuple[int, ...], seeds: Sequence[int]
    ) -> Float[Tensor, "b k *s"]:
        return torch.cat([self._cut(log_odds[i : i + 1], grid, seed) for i, seed in enumerate(seeds)])

    def _placed(self, x: Tensor, grid: tuple[int, ...], seed: int) -> Tensor:
        sides, starts = self._place(grid, seed)
        margins = zip(starts, self._grid(grid), sides, strict=True)
        frame = [n for start, whole, side in reversed(list(margins)) for n in (start, whole - side - start)]
        return F.pad(stretched(x, sides), frame, mode="replicate")

    def _cut(self, x: Tensor, grid: tuple[int, ...], seed: int) -> Tensor:
        sides, starts = self._place(grid, seed)
        for axis, (start, side) in enumerate(zip(starts, sides, strict=True), start=2):
            x = x.narrow(axis, start, side)
        return stretched(x, grid)

    def _grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(round(self.largest * n) for n in grid)

    def _place(self, grid: tuple[int, ...], seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The sides of the enlarged image and where it begins."""
        drawn = torch.rand(1 + len(grid), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
        zoom = 1 + drawn[0] * (self.largest - 1)
        wholes = self._grid(grid)
        sides = tuple(min(round(zoom * n), whole) for n, whole in zip(grid, wholes, strict=True))
        starts = (int(share * (w - side + 1)) for share, w, side in zip(drawn[1:], wholes, sides, strict=True))
        return sides, tuple(starts)
