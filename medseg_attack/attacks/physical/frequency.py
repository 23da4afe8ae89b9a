"""Quantised frequencies: cosine coefficients of blocks stored too coarsely, as by JPEG, with the most harmful table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.physical.ascent import Numbers, Parametrised, Rendered, random_numbers, require_ball
from medseg_attack.errors import require
from medseg_attack.numerics.fields import cosines
from medseg_attack.numerics.samples import TINY
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import LengthBall
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.types import Ball, Image, Objective, PerSample

GREY = 255.0  # the levels that a table counts in


@register("quantised", kind="ball")
@dataclass(frozen=True)
class Quantised(LengthBall):
    """The cosine coefficients of each block may be rounded to multiples of `eps` grey levels of 255.

    Each moves by half of that at most, so no block's root mean square does more; twice that root mean square is what
    is measured. Rounding towards the untouched image keeps it, which it does not do to a bound on coefficients.

    Attributes:
        eps: largest step of the quantisation, in grey levels of 255, from 0 to 255.
        block: side of a block in pixels, 2 or more; a volume has cubes.
        planes: True: blocks of a volume are squares in each of its planes (VAFA-2D).
        stretch: True: the image is then stretched to [0, 1] in each plane, as the released code does: a change of
            contrast that no table bounds, so that everything in [0, 1] is in the ball.

    Raises:
        InputError: `block` is below 2.
    """

    unit = "grey levels of 255"
    budgets = "[0, 255]"

    eps: float = 20.0
    block: int = 8
    planes: bool = False
    stretch: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, block=2)

    @property
    def limit(self) -> float:
        return 2 * GREY if self.stretch else self.eps

    def sides(self, axes: int) -> tuple[int, ...]:
        """The side of a block along each of so many axes, in pixels."""
        return (1,) * (axes - 2) + (self.block,) * 2 if self.planes else (self.block,) * axes

    def step(self, grad: Image, image: Image) -> Image:
        return self.eps / GREY / 2 * grad.sign()

    def project(self, x: Image, x0: Image) -> Image:
        if self.stretch:
            return x.clamp(0, 1)
        return super().project(x, x0)

    def size(self, x: Image, x0: Image) -> PerSample:
        return self._rms(x - x0).amax(1)

    def _rms(self, change: Image) -> Float[Tensor, "b blocks"]:
        """Twice the root mean square of each block, in grey levels; a block that the border cuts is filled with 0."""
        sides = self.sides(change.ndim - 2)
        pool = F.avg_pool2d if change.ndim == 4 else F.avg_pool3d
        # in float64: float32 loses more in a sum over a block than the loop tolerates
        squares = pool(_filled(change.double(), sides, "constant").square(), sides)
        return (2 * GREY * squares.flatten(1).sqrt()).to(change)


@register("vafa", kind="attack", cost="steps + 2 forward, steps backward", reaches="its ball", shown_by="vafa(steps=4)")
@dataclass(frozen=True)
class Vafa(Parametrised):
    """The quantisation table of cosine coefficients that harms most (Hanif et al., VAFA, MICCAI 2023).

    All blocks of an image share one table, from `least` to the ball's `eps`, which is searched in signed steps.
    Rounding is a staircase of hyperbolic tangents that grows sharp (their eq. 3); the last image is rounded. Blocks
    that reach over the border repeat it. The objective is a saw of the table, on which a search from its least entries
    does not get far; hence the random start.

    Attributes:
        ball: `quantised`, which bounds the table.
        step_size: change of every number in a step, 0 or more; the table's range is 2 long, so that 0.1 is about one
            grey level of 20.
        least: smallest entry of the table, in grey levels, 0 or more; 1 in the paper.
        ssim: weight of 1 - SSIM (windows of 3 pixels), 0 or more, taken off the objective ("+SSIM" in the paper).
        random_start: True begins at a table drawn at random, False at the least entries, as the paper does.
        steps: of signed ascent, 0 or more; 0 draws a table at random.

    Raises:
        InputError: `least` or `ssim` is below 0.
    """

    ball: Ball = Quantised()
    step_size: float = 0.1
    least: float = 1.0
    ssim: float = 0.0
    random_start: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ball(self.ball, Quantised, "the ball quantised for vafa", "quantised(20)")
        require(self, least=0, ssim=0)

    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        numbers = random_numbers(image, math.prod(self._ball.sides(image.ndim - 2)), seeds)
        return numbers if self.random_start or self.steps == 0 else torch.full_like(numbers, -1)

    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        ball = self._ball
        if ball.eps == 0:
            return Rendered(image + 0 * numbers.sum())
        sides = ball.sides(image.ndim - 2)
        least = min(self.least, ball.eps)
        table = least + (ball.eps - least) * (numbers + 1) / 2
        x = quantised(image, table.view(len(image), *sides), 0.1 * (1 - progress))
        x = at_full_contrast(x) if ball.stretch else x
        return Rendered(x, penalty=self.ssim * _unlike(x, image) if self.ssim else None)

    @property
    def _ball(self) -> Quantised:
        ball = self.ball.unrestricted
        assert isinstance(ball, Quantised)
        return ball


@register(
    "vafa_hanif2023",
    kind="attack",
    cost="steps + 2 forward, steps backward",
    reaches="what is known in tests/attacks/test_frequency.py, as its stretch bounds nothing",
)
def vafa_hanif2023(ball: Ball = Quantised(stretch=True), objective: Objective = bce, steps: int = 20) -> Vafa:
    """VAFA as released: tables from 5, one grey level a step, each plane stretched (Hanif et al., MICCAI 2023)."""
    return Vafa(ball, objective, steps, 2 / 15, 5.0, random_start=False)


def quantised(image: Image, table: Float[Tensor, "b *block"], soft: float) -> Image:
    """The image with the cosine coefficients of its blocks rounded to multiples of the table, in grey levels of 255.

    Args:
        soft: 0 rounds; up to 0.1, the staircase has slopes.
    """
    sides = tuple(table.shape[1:])
    coefficients = dct(image * GREY - 128, sides)
    steps = table.view(len(table), 1, *(n for side in sides for n in (1, side))).clamp(min=1e-6)
    whole = idct(staircase(coefficients / steps, soft) * steps)
    shown = (slice(None), slice(None), *(slice(n) for n in image.shape[2:]))
    return ((whole[shown] + 128) / GREY).clamp(0, 1)


def staircase(v: Tensor, soft: float) -> Tensor:
    """Soft rounding: whole numbers stay, halves lie between; `soft` = 0 rounds, without a gradient (eq. 3 of VAFA).

    >>> [round(staircase(torch.tensor(2.25), soft).item(), 4) for soft in (0.1, 0.01)]
    [2.1518, 2.0618]
    """
    if soft == 0:
        return v.round()
    steep = math.log(2 / soft - 1)
    below = v.detach().floor()
    return below + (1 + torch.tanh(steep * (v - below - 0.5)) / (1 - soft)) / 2


def dct(x: Image, sides: Sequence[int]) -> Tensor:
    """Orthonormal cosine coefficients of blocks, (b, c, blocks, side, blocks, side, ...); the border is repeated."""
    x = _filled(x, sides, "replicate")
    for axis in reversed(range(len(sides))):
        x = x.view(*x.shape[: 2 + axis], -1, sides[axis], *x.shape[3 + axis :])
    return _transformed(x, inverse=False)


def idct(coefficients: Tensor) -> Image:
    """The image that has these coefficients, with the border that was repeated."""
    x = _transformed(coefficients, inverse=True)
    for axis in range((x.ndim - 2) // 2):
        x = x.flatten(2 + axis, 3 + axis)
    return x


def at_full_contrast(x: Image) -> Image:
    """The image with each plane stretched to [0, 1]; a plane of a single value stays as it is."""
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    flat = high - low < TINY
    return torch.where(flat, x, (x - low) / torch.where(flat, 1, high - low))


def _transformed(x: Tensor, inverse: bool) -> Tensor:
    for axis in range(3, x.ndim, 2):
        waves = cosines(x.shape[axis]).to(x)
        x = torch.tensordot(x, waves, dims=([axis], [0 if inverse else 1])).movedim(-1, axis)
    return x


def _filled(x: Image, sides: Sequence[int], mode: str) -> Tensor:
    """`x` padded at the end of each axis to whole blocks."""
    missing = [-n % side for n, side in zip(x.shape[2:], sides, strict=True)]
    pad = [n for m in reversed(missing) for n in (0, m)]
    return F.pad(x, pad, mode=mode) if any(missing) else x


def _unlike(x: Image, image: Image) -> PerSample:
    """Structural dissimilarity of each sample: 1 - SSIM."""
    from monai.losses import SSIMLoss  # imported late: it takes seconds to load

    loss = SSIMLoss(spatial_dims=image.ndim - 2, kernel_type="uniform", win_size=3, reduction="none")
    value: Tensor = loss(x, image)
    return value.reshape(len(image), -1).mean(1)
