"""Bias fields: intensities times a smooth field, as the uneven sensitivity of a coil leaves them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.physical.ascent import Numbers, Parametrised, Rendered, random_numbers
from medseg_attack.errors import require
from medseg_attack.numerics.fields import polynomial, smooth
from medseg_attack.numerics.samples import draw
from medseg_attack.numerics.stored_values import FLOAT32_SLACK
from medseg_attack.registry import register
from medseg_attack.types import Ball, Image, PerSample

BASES = ("spline", "polynomial")


@register("gain", kind="ball")
@dataclass(frozen=True)
class FieldStrength(Ball):
    """Every pixel may be multiplied by 1 - `eps` to 1 + `eps`, the strength of a bias field; black stays black.

    Rounding towards the untouched image and cutting at white only bring it closer, so both keep it in the ball.
    What float32 loses of a difference counts as none.

    Attributes:
        eps: largest relative change of a pixel, from 0 to below 1.
    """

    unit = "field strength"
    budgets = "[0, 1)"

    eps: float = 0.3

    def step(self, grad: Image, image: Image) -> Image:
        return self.eps * image * grad.sign()

    def project(self, x: Image, x0: Image) -> Image:
        return x.clamp((1 - self.eps) * x0, (1 + self.eps) * x0).clamp(0, 1)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        return self.project(x0 + self.eps * x0 * (2 * draw(torch.rand, x0, seeds) - 1), x0)

    def size(self, x: Image, x0: Image) -> PerSample:
        return relative(x, x0).flatten(1).amax(1)


def relative(x: Image, x0: Image) -> Image:
    """The change of every pixel as a share of its untouched intensity."""
    change = ((x - x0).abs() - FLOAT32_SLACK).clamp(min=0)
    return torch.where(change > 0, change / x0, 0)


@register(
    "bias_field",
    kind="attack",
    cost="steps + 2 forward, steps backward",
    reaches="its ball",
    shown_by="bias_field(steps=4)",
)
@dataclass(frozen=True)
class BiasField(Parametrised):
    """The bias field that harms most (Chen et al., AdvBias, MICCAI 2020; Tian et al., arXiv 2009.09247).

    The field is exp(b) with b smooth and the field itself between 1 - eps and 1 + eps. Steps on its weights follow
    signs in place of normalised gradients, since every weight has a bound of its own. Tian's warp of the coordinates
    and soft penalties are left out: the ball bounds the field itself.

    Attributes:
        basis: "spline" (cubic B-splines, AdvBias) or "polynomial" (Legendre in place of Tian's powers, which are
            nearly dependent).
        order: number of control points along each axis (4 or more), or of polynomials (1 or more).
        steps: of signed ascent, 0 or more; 0 draws a field at random.

    Raises:
        InputError: there is no such basis, or `order` is too small for it.
    """

    ball: Ball = FieldStrength()
    basis: str = "spline"
    order: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, basis=BASES, order=4 if self.basis == "spline" else 1)

    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        return random_numbers(image, self.order ** (image.ndim - 2), seeds)

    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        return Rendered(biased(numbers, image, self.ball.eps, self.basis, self.order))


def biased(numbers: Numbers, image: Image, strength: float, basis: str = "spline", order: int = 5) -> Image:
    """The image times the field that these weights in [-1, 1] describe, between 1 - strength and 1 + strength."""
    grid = tuple(image.shape[2:])
    weights = numbers.view(len(image), 1, *(order for _ in grid))
    if basis == "spline":
        field = smooth(weights, grid)
    else:
        field = polynomial(weights, grid)
        field = field / field.abs().flatten(1).amax(1).clamp(min=1).view(-1, 1, *(1 for _ in grid))
    up, down = torch.log1p(torch.tensor([strength, -strength], dtype=torch.float64)).tolist()
    return image * torch.exp(torch.where(field > 0, up * field, -down * field))
