"""Motion of the body between the lines of k-space: blur and ghosts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.physical.ascent import Numbers, Parametrised, Rendered, random_numbers, require_ball
from medseg_attack.errors import require
from medseg_attack.numerics.fields import splines
from medseg_attack.numerics.samples import TINY, widen
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import BallInMm, LengthBall
from medseg_attack.types import Ball, Image, PerSample

HALVINGS = 40  # of an interval in mm, until it is below what float32 tells apart


@register("trembling", kind="ball")
@dataclass(frozen=True)
class LineMotion(LengthBall, BallInMm):
    """The body may be up to `eps` mm from its place while any line of k-space is acquired.

    Its size is the least motion that can explain how much the image changed: a shift by d mm turns the phase of a
    frequency f by 2 pi f d at most, which bounds the change of energy (Parseval), and magnitudes change less.
    Where the cases are not known, a pixel is taken for 1 mm.

    Attributes:
        eps: largest distance in mm, 0 or more.
    """

    unit = "mm"

    eps: float = 1.0

    def step(self, grad: Image, image: Image) -> Image:
        energy = self._energy(image)
        return grad * widen(energy.sqrt() / (grad.flatten(1).square().sum(1).sqrt() + TINY), grad)

    def shrink(self, x: Image, x0: Image) -> PerSample:
        return (self._energy(x0) / ((x - x0).flatten(1).square().sum(1) + TINY**2)).sqrt()

    def size(self, x: Image, x0: Image) -> PerSample:
        change = (x - x0).flatten(1).square().sum(1)
        mm = self.mm(x0)
        spectrum = Spectrum.of(x0, mm)
        # further than a pixel's diagonal times the grid, every phase is turned round
        high = (mm[:, -2:].flatten(1).amax(1) * max(x0.shape[-2:])).to(x0)
        possible = change <= spectrum.energy(high) * (1 + 1e-6)
        low = torch.zeros_like(high)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            enough = spectrum.energy(middle) >= change
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        return torch.where(change == 0, 0.0, torch.where(possible, low, math.inf)).to(x0)

    def _energy(self, x0: Image) -> PerSample:
        """The most by which a motion of `eps` changes the sum of squares of an image's difference."""
        return Spectrum.of(x0, self.mm(x0)).energy(x0.new_full((len(x0),), self.eps))


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The frequencies of images along the lines and across them.

    Attributes:
        power: squared magnitude of each frequency, (b, c, *s), float64: in float32 a flat image has some structure.
        length: of each frequency, per mm, in a shape that broadcasts to `power`.
    """

    power: Tensor
    length: Tensor

    @classmethod
    def of(cls, image: Image, mm: Float[Tensor, "b n *ones"]) -> "Spectrum":
        """The spectrum of images with pixels of that size."""
        down, across = frequencies(image, mm)
        return cls(torch.fft.fft2(image.double(), norm="ortho").abs().square(), (down**2 + across**2).sqrt())

    def energy(self, shift_mm: PerSample) -> PerSample:
        """The most by which a motion of that size changes the sum of squares of an image's difference."""
        turn = math.pi * widen(shift_mm, self.power) * self.length
        energy: Tensor = (self.power * 4 * torch.sin(turn.clamp(max=math.pi / 2)).square()).flatten(1).sum(1)
        return energy.to(shift_mm)


def frequencies(image: Image, mm: Float[Tensor, "b n *ones"]) -> tuple[Tensor, Tensor]:
    """Frequencies per mm of the lines (rows) and along them (columns), in the order of a transform over both axes."""
    down, across = (torch.fft.fftfreq(n, device=image.device, dtype=image.dtype) for n in image.shape[-2:])
    sizes = mm.flatten(1)[:, -2:]
    row, column = (widen(sizes[:, n], image) for n in (0, 1))
    return down[:, None] / row, across[None] / column


@register(
    "motion",
    kind="attack",
    cost="steps + 2 forward, steps backward",
    reaches="what is known in tests/attacks/test_scanners.py, as it is measured in mm",
)
@dataclass(frozen=True)
class Motion(Parametrised):
    """The motion between lines of k-space that harms most: blur and ghosts, with the body where it was on average.

    The motion is in plane: a smooth course over the lines in the order in which they lie. The truth is that of the body
    at rest.

    Attributes:
        ball: `trembling`, which bounds the distance.
        order: number of control points of the course, 4 or more; more of them make a faster motion.
        steps: of signed ascent, 0 or more; 0 draws a course at random.

    Raises:
        InputError: `order` is below 4.
    """

    ball: Ball = LineMotion()
    order: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ball(self.ball, LineMotion, "the ball trembling for motion", "trembling(1)")
        require(self, order=4)

    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        return random_numbers(image, 2 * self.order, seeds)

    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        ball = self.ball.unrestricted
        assert isinstance(ball, LineMotion)
        course = numbers.view(len(image), 2, self.order) @ splines(image.shape[-2], self.order).to(numbers).T
        # the line of no frequency is acquired at rest, or the whole image would be shifted
        course = (course - course[..., image.shape[-2] // 2, None]) / 2
        shift = ball.eps / math.sqrt(2) * torch.fft.ifftshift(course, dim=-1)
        down, across = frequencies(image, ball.mm(image))
        by_line = shift.view(len(image), 2, *(1 for _ in image.shape[2:-2]), -1, 1)
        turn = -2 * math.pi * (down * by_line[:, :1] + across * by_line[:, 1:])
        lines = torch.fft.fft2(image) * torch.polar(torch.ones_like(turn), turn)
        return Rendered(torch.fft.ifft2(lines).abs().clamp(max=1))
