"""Smaller copies of an image that gradients are taken through (DI2-FGSM), and how far pixels may move."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.numerics.samples import TINY, draw, widen
from medseg_attack.types import Ball, Image, LogOdds, PerSample

SMALLEST = 0.9  # of the size, as in the code that reference comparisons are made with


def reach(ball: Ball, image: Image) -> Image:
    """What every pixel moves by when all move alike up to the ball's edge: eps in Linf, eps/sqrt(n) in L2.

    0 where the ball lets nothing change.
    """
    moves = ball.free(image).to(image)
    return widen(ball.eps / (ball.size(moves, torch.zeros_like(moves)) + TINY), image) * moves


@dataclass(frozen=True, eq=False)
class Shrunk:
    """Images as smaller copies of themselves somewhere on their own grid, zeros around; one size for all axes.

    Of some samples only (`chosen`); the others stay as they are. Log-odds found on the copies are carried back to
    where the pixels came from, so that truth and image stay aligned.

    Attributes:
        size: of the copy, as a fraction.
        centre: of the copy, with -1 and 1 at the edges of the grid.
    """

    chosen: Bool[Tensor, "b"]
    size: PerSample
    centre: Float[Tensor, "b d"]

    @classmethod
    def draw(cls, image: Image, chance: float, seeds: Sequence[int]) -> "Shrunk":
        axes = image.ndim - 2
        if axes not in (2, 3):
            raise InputError(f"expected 2 or 3 axes to shrink an image along, got {axes}; set diversity=0")
        dice = draw(torch.rand, image[:, :1].flatten(1)[:, :1].expand(-1, 2 + axes), seeds)
        size = SMALLEST + (1 - SMALLEST) * dice[:, 1]
        return cls(dice[:, 0] < chance, size, (2 * dice[:, 2:] - 1) * (1 - size[:, None]))

    def to(self, image: Image) -> Image:
        """The copies."""
        warped = _sampled(image, 1 / self.size, -self.centre / self.size[:, None], outside="zeros")
        return torch.where(widen(self.chosen, image), warped, image)

    def back(self, log_odds: LogOdds) -> LogOdds:
        """What was found on the copies, on the images' own grid."""
        warped = _sampled(log_odds, self.size, self.centre, outside="border")
        return torch.where(widen(self.chosen, log_odds), warped, log_odds)


def _sampled(x: Tensor, zoom: PerSample, shift: Float[Tensor, "b d"], *, outside: str) -> Tensor:
    """`x` at `zoom * u + shift`, linearly."""
    eye = torch.eye(shift.shape[1], dtype=x.dtype, device=x.device)
    # grid_sample counts axes from the last one
    theta = torch.cat((zoom.view(-1, 1, 1) * eye, shift.flip(1).unsqueeze(2)), 2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode=outside, align_corners=False)
