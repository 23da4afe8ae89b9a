"""Smooth deformations of the body that can be undone, with the truth carried along."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.physical.ascent import Numbers, Parametrised, Rendered, random_numbers, require_ball
from medseg_attack.attacks.physical.bias_field import FieldStrength, biased
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.fields import smooth
from medseg_attack.numerics.flows import exponential, warped
from medseg_attack.registry import register, spec
from medseg_attack.threat.balls.base import MovingBall, longest
from medseg_attack.types import Ball, Flow, Image, PerSample


@register("displacement", kind="ball")
@dataclass(frozen=True)
class Displacement(MovingBall):
    """Anatomy may move by up to `eps` mm; intensities are carried along.

    Attributes:
        eps: longest displacement of a pixel, in mm, 0 or more.
    """

    unit = "mm"

    eps: float = 3.0

    def length(self, flow: Flow) -> PerSample:
        return longest(flow * self.mm(flow))


@register(
    "deformation",
    kind="attack",
    cost="steps + 2 forward, steps backward",
    paper="Chen et al., advchain, Medical Image Analysis 2022",
    reaches="nothing, as the truth moves along",
    shown_by="deformation(steps=4)",
)
@dataclass(frozen=True)
class Deformation(Parametrised):
    """The smooth deformation that harms most, the truth carried along (Chen et al., advchain, MedIA 2022).

    The velocity is of cubic B-splines in place of a Gaussian-smoothed coarse grid: no pixel of it exceeds its control
    points, so a bound on these is one on the displacement in mm. Scaling and squaring integrate it, so the deformation
    has an inverse.

    Attributes:
        ball: one in which anatomy may move, such as `displacement`.
        order: number of control points along each axis, 4 or more; more of them make a rougher field.
        steps: of signed ascent, 0 or more; 0 draws a deformation at random.

    Raises:
        InputError: `order` or another field is out of range, or the ball is another one.
    """

    ball: Ball = Displacement()
    order: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, order=4)
        require_ball(self.ball, MovingBall, "a ball in which anatomy may move for deformation", "displacement(3)")

    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        axes = image.ndim - 2
        return random_numbers(image, axes * self.order**axes, seeds)

    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        assert isinstance(self.ball, MovingBall)
        flow, back = bent(numbers, image, self.ball, self.ball.eps, self.order)
        return Rendered(warped(image, flow), flow, back)


def bent(numbers: Numbers, image: Image, ball: MovingBall, most_mm: float, order: int) -> tuple[Flow, Flow]:
    """The deformation of these weights and the one that undoes it; no pixel moves further than `most_mm`."""
    axes = image.ndim - 2
    grid = tuple(image.shape[2:])
    field = smooth(numbers.view(len(image), axes, *(order for _ in grid)), grid)
    velocity = most_mm / math.sqrt(axes) * field / ball.mm(image)
    return exponential(velocity), exponential(-velocity)


@register("tissue", kind="ball")
@dataclass(frozen=True)
class ShapeAndGain(MovingBall):
    """Anatomy may move and a bias field may lie over it, each up to `eps` times a bound; the larger share is measured.

    Attributes:
        eps: factor of both bounds, 0 or more.
        shift_mm: bound of the displacement of a pixel, in mm, above 0.
        strength: bound of the bias field, as in `gain`; times `eps` it must be below 1.

    Raises:
        InputError: a field is out of range, or the field of intensities may reach 0.
    """

    eps: float = 1.0
    shift_mm: float = 3.0
    strength: float = 0.3

    def __post_init__(self) -> None:
        require(self, eps="[0, inf)", shift_mm="(0, inf)", strength="(0, inf)")
        if self.eps * self.strength >= 1:
            raise InputError(f"expected a field of eps * strength below 1, got {spec(self)}; lower one of them")

    @property
    def unit(self) -> str:
        return f"parts of {self.shift_mm:g} mm and field strength {self.strength:g}"

    @property
    def gain(self) -> FieldStrength:
        """The ball of the bias field alone."""
        return FieldStrength(self.eps * self.strength)

    def length(self, flow: Flow) -> PerSample:
        return longest(flow * self.mm(flow)) / self.shift_mm

    def step(self, grad: Image, image: Image) -> Image:
        return self.gain.step(grad, image)

    def project(self, x: Image, x0: Image) -> Image:
        return self.gain.project(x, x0)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        return self.gain.sample(x0, seeds)

    def size(self, x: Image, x0: Image) -> PerSample:
        return self.gain.size(x, x0) / self.strength


@register(
    "deformation_bias",
    kind="attack",
    cost="steps + 2 forward, steps backward",
    paper="Chen et al., SASHIMI 2019 (in its spirit)",
    reaches="what is known in tests/attacks/test_physical.py, as it moves and changes intensities",
)
@dataclass(frozen=True)
class DeformationBias(Parametrised):
    """The deformation and bias field that harm most together, in the spirit of Chen et al. (SASHIMI 2019).

    They draw both, as clinical variation, from a VAE-GAN that is fitted to CT. We search for a deformation and a bias
    field at once, each within bounds that can be stated in mm and field strength.

    Attributes:
        ball: `tissue`, which bounds both.
        order: number of control points of the deformation along each axis, 4 or more; the field has 5.
        steps: of signed ascent, 0 or more; 0 draws both at random.

    Raises:
        InputError: `order` or another field is out of range, or the ball is another one.
    """

    ball: Ball = ShapeAndGain()
    order: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, order=4)
        require_ball(self.ball, ShapeAndGain, "the ball tissue for deformation_bias", "tissue(eps=1)")

    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        axes = image.ndim - 2
        return random_numbers(image, axes * self.order**axes + 5**axes, seeds)

    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        ball = self.ball
        assert isinstance(ball, ShapeAndGain)
        axes = image.ndim - 2
        shape, field = torch.split(numbers, [axes * self.order**axes, 5**axes], dim=1)
        flow, back = bent(shape, image, ball, ball.eps * ball.shift_mm, self.order)
        return Rendered(biased(field, warped(image, flow), ball.eps * ball.strength), flow, back)
