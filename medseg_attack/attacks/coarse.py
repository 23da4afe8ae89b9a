"""Changes of few dimensions: a coarse grid of values that is stretched onto the image."""

import torch.nn.functional as F
from torch import Tensor

from medseg_attack.types import Image

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def zeros(image: Image, side: int) -> Tensor:
    """A change of nothing, (b, c, side, ...), no finer than the image; `side` 0: as fine."""
    return image.new_zeros(*image.shape[:2], *(min(side or n, n) for n in image.shape[2:]))


def stretched(change: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The change on another grid: linearly between its values, so that none grows; itself on its own."""
    if tuple(change.shape[2:]) == grid:
        return change
    return F.interpolate(change, grid, mode=MODES[len(grid)], align_corners=False)
