"""Parts of gradient attacks that other images, or other gradients, are made with."""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medseg_attack.balls import TINY, drawn, free
from medseg_attack.errors import InputError
from medseg_attack.types import Ball, Image, LogOdds, PerSample

SMALLEST = 0.9  # of the size, as in the code that reference comparisons are made with


def reseeded(seeds: Sequence[int], *purpose: int | str) -> list[int]:
    """Other seeds for another purpose: a run, a step."""
    told = "/".join(map(str, purpose))
    return [crc32(f"{seed}/{told}".encode()) for seed in seeds]


def scaled(grad: Image) -> Image:
    """Each sample's gradient divided by its mean magnitude; a zero gradient stays zero."""
    return grad / (grad.abs().mean(tuple(range(1, grad.ndim)), keepdim=True) + TINY)


def reach(ball: Ball, image: Image) -> Image:
    """What every pixel moves by when all move alike up to the ball's edge: eps in Linf, eps/sqrt(n) in L2.

    0 where the ball lets nothing change.
    """
    moves = free(ball, image).to(image)
    return wide(ball.eps / (ball.size(moves, torch.zeros_like(moves)) + TINY), image) * moves


def wide(per_sample: Tensor, like: Tensor) -> Tensor:
    """One number per sample, in a shape that goes with whole images."""
    return per_sample.view(-1, *(1 for _ in like.shape[1:]))


def blurred(grad: Image, width: int) -> Image:
    """Every channel convolved with a Gaussian of `width` pixels, three standard deviations to a side, zeros outside."""
    at = torch.arange(width, dtype=grad.dtype, device=grad.device) - width // 2
    kernel = torch.exp(-0.5 * (at * 6 / max(width - 1, 1)).square())
    kernel = kernel / kernel.sum()
    for axis in range(2, grad.ndim):
        lines = grad.movedim(axis, -1)
        flat = F.conv1d(lines.reshape(-1, 1, lines.shape[-1]), kernel.view(1, 1, -1), padding=width // 2)
        grad = flat.view(lines.shape).movedim(-1, axis)
    return grad


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
        dice = drawn(torch.rand, image[:, :1].flatten(1)[:, :1].expand(-1, 2 + axes), seeds)
        size = SMALLEST + (1 - SMALLEST) * dice[:, 1]
        return cls(dice[:, 0] < chance, size, (2 * dice[:, 2:] - 1) * (1 - size[:, None]))

    def to(self, image: Image) -> Image:
        """The copies."""
        warped = _sampled(image, 1 / self.size, -self.centre / self.size[:, None], outside="zeros")
        return torch.where(wide(self.chosen, image), warped, image)

    def back(self, log_odds: LogOdds) -> LogOdds:
        """What was found on the copies, on the images' own grid."""
        warped = _sampled(log_odds, self.size, self.centre, outside="border")
        return torch.where(wide(self.chosen, log_odds), warped, log_odds)


def _sampled(x: Tensor, zoom: PerSample, shift: Float[Tensor, "b d"], *, outside: str) -> Tensor:
    """`x` at `zoom * u + shift`, linearly."""
    eye = torch.eye(shift.shape[1], dtype=x.dtype, device=x.device)
    # grid_sample counts axes from the last one
    theta = torch.cat((zoom.view(-1, 1, 1) * eye, shift.flip(1).unsqueeze(2)), 2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode=outside, align_corners=False)
