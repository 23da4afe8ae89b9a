"""Smaller copies of an image that gradients are taken through (DI2-FGSM)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.numerics.samples import draw, widen
from medseg_attack.types import Image, LogOdds, PerSample

SMALLEST = 0.9  # of the size, as in the code that reference comparisons are made with


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A random placement of smaller copies of images on the images' own grid, with zeros around them.

    The log-odds of a copy are carried back to the pixels that it shows, so that truth and image stay aligned.

    Attributes:
        chosen: the samples that are shrunk; the others stay as they are.
        size: side of the copy as a share of the image's, the same along all axes, in [0.9, 1].
        centre: middle of the copy along each axis, with -1 and 1 at the edges of the grid.
    """

    chosen: Bool[Tensor, "b"]
    size: PerSample
    centre: Float[Tensor, "b d"]

    @classmethod
    def draw(cls, image: Image, chance: float, seeds: Sequence[int]) -> "Shrunk":
        """A placement for each image, drawn with its seed; `chance` in [0, 1] is that of being shrunk at all.

        Raises:
            InputError: the images have not 2 or 3 axes.
        """
        axes = image.ndim - 2
        if axes not in (2, 3):
            raise InputError(f"expected 2 or 3 axes to shrink an image along, got {axes}; set diversity=0")
        dice = draw(torch.rand, image[:, :1].flatten(1)[:, :1].expand(-1, 2 + axes), seeds)
        size = SMALLEST + (1 - SMALLEST) * dice[:, 1]
        return cls(dice[:, 0] < chance, size, (2 * dice[:, 2:] - 1) * (1 - size[:, None]))

    def through(self, model: Callable[[Image], LogOdds]) -> Callable[[Image], LogOdds]:
        """The model as it sees images through their copies."""
        return lambda image: self.back(model(self.to(image)))

    def to(self, image: Image) -> Image:
        """The images with the chosen ones shrunk, zeros around them."""
        warped = _sampled(image, 1 / self.size, -self.centre / self.size[:, None], outside="zeros")
        return torch.where(widen(self.chosen, image), warped, image)

    def back(self, log_odds: LogOdds) -> LogOdds:
        """Log-odds of the copies on the images' own grid; outside of a copy those of its border."""
        warped = _sampled(log_odds, self.size, self.centre, outside="border")
        return torch.where(widen(self.chosen, log_odds), warped, log_odds)


def _sampled(x: Tensor, zoom: PerSample, shift: Float[Tensor, "b d"], *, outside: str) -> Tensor:
    """`x` sampled linearly at `zoom * u + shift` for each pixel's coordinates u in [-1, 1]."""
    eye = torch.eye(shift.shape[1], dtype=x.dtype, device=x.device)
    # grid_sample counts axes from the last one
    theta = torch.cat((zoom.view(-1, 1, 1) * eye, shift.flip(1).unsqueeze(2)), 2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode=outside, align_corners=False)
