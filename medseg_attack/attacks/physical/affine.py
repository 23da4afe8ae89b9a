"""Patients who lie turned, shifted or are of another size: affine changes with the truth carried along."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.physical.ascent import Numbers, Parametrised, Rendered, random_numbers, require_ball
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.flows import pixel_indices, warped
from medseg_attack.registry import register, spec
from medseg_attack.threat.balls.base import MovingBall, longest
from medseg_attack.types import Ball, Flow, Image, PerSample

STIFF = 1e-3  # mm: what float32 leaves of a flow beside its own affine part


@register("pose", kind="ball")
@dataclass(frozen=True)
class Pose(MovingBall):
    """The body may turn, shift and scale, each by `eps` times a bound of its own; the largest share of one is measured.

    The size is measured on the flow alone: on its best affine fit, which must leave nothing over.

    Attributes:
        eps: factor of all three bounds, 0 or more.
        degrees: bound of the rotation around the middle of the image, in degrees; in 3-D around any axis. With the
            factor `eps` it must be below 90.
        shift_mm: bound of the shift of the middle, in mm.
        scale: bound of the scaling, as a share: 0.1 is a tenth larger, or smaller by the same factor.

    Raises:
        InputError: a field is out of range, or the largest rotation is 90 degrees or more.
    """

    eps: float = 1.0
    degrees: float = 10.0
    shift_mm: float = 5.0
    scale: float = 0.1

    def __post_init__(self) -> None:
        require(self, eps="[0, inf)", degrees="[0, 90)", shift_mm="[0, inf)", scale="[0, inf)")
        if self.eps * self.degrees >= 90:
            raise InputError(f"expected a rotation of eps * degrees below 90, got {spec(self)}; lower one of them")

    @property
    def unit(self) -> str:
        return f"parts of {self.degrees:g} degrees, {self.shift_mm:g} mm and scale {self.scale:g}"

    def length(self, flow: Flow) -> PerSample:
        flow = (flow * self.mm(flow)).double()
        place = centred(flow, self.mm(flow))
        shift = flow.flatten(2).mean(2)
        spread = place.square().flatten(2).sum(2).clamp(min=1e-9)
        linear = torch.einsum("bi...,bj...->bij", flow, place) / spread[:, None]
        residual = flow - shift.view(*shift.shape, *(1 for _ in place.shape[2:]))
        residual = residual - torch.einsum("bij,bj...->bi...", linear, place)
        matrix = linear + torch.eye(linear.shape[1]).to(linear)
        scale = matrix.det().clamp(min=1e-9) ** (1 / linear.shape[1])
        turn = matrix / scale[:, None, None]
        # the sine of the angle is the length of the antisymmetric part's axis
        sine = ((turn - turn.mT) / 2).square().sum((1, 2)).div(2).sqrt()
        sheared = (turn @ turn.mT - torch.eye(linear.shape[1]).to(linear)).abs().amax((1, 2))
        shares = [
            _share(torch.rad2deg(torch.asin(sine.clamp(max=1))), self.degrees),
            _share(shift.square().sum(1).sqrt(), self.shift_mm),
            _share(scale.log().abs(), math.log1p(self.scale)),
        ]
        stiff = (longest(residual) <= STIFF) & (sheared <= STIFF)
        return torch.where(stiff, torch.stack(shares).amax(0), math.inf)


def _share(value: PerSample, bound: float) -> PerSample:
    """The value as a share of its bound; infinite where the bound is 0 and the value is not."""
    return value / bound if bound else torch.where(value > STIFF, math.inf, 0.0).to(value)


def centred(like: Tensor, mm: Float[Tensor, "b n *ones"]) -> Float[Tensor, "b n *s"]:
    """The place of each pixel relative to the middle of the image, in mm along each axis."""
    middle = (like.new_tensor(like.shape[2:]) - 1) / 2
    return (pixel_indices(like) - middle.view(1, -1, *(1 for _ in like.shape[2:]))) * mm


@register(
    "affine",
    kind="attack",
    cost="steps + 2 forward, steps backward",
    paper="Chen et al., advchain, Medical Image Analysis 2022",
    reaches="nothing, as the truth moves along",
    shown_by="affine(steps=4)",
)
@dataclass(frozen=True)
class Affine(Parametrised):
    """The rotation, shift and scale that harm most, the truth carried along (Chen et al., advchain, MedIA 2022).

    The change is computed in mm, so that a body keeps its form on grids of unequal spacing, around the middle of the
    image. One scale holds for all axes: bodies are not stretched.

    Attributes:
        ball: `pose`, which bounds rotation, shift and scale.
        steps: of signed ascent, 0 or more; 0 draws a pose at random.
    """

    ball: Ball = Pose()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ball(self.ball, Pose, "the ball pose for affine", "pose(degrees=10)")

    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        axes = image.ndim - 2
        return random_numbers(image, axes * (axes - 1) // 2 + 1 + axes, seeds)

    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        pose = self.ball
        assert isinstance(pose, Pose)
        axes = image.ndim - 2
        turns = axes * (axes - 1) // 2
        # in float64: beside the 1 on the matrix's diagonal, float32 keeps too few digits of a small change
        turn, size, shift = torch.split(numbers.double(), [turns, 1, axes], dim=1)
        angle = math.radians(pose.eps * pose.degrees) / math.sqrt(turns) * turn
        growth = pose.eps * math.log1p(pose.scale) * size
        shift = pose.eps * pose.shift_mm / math.sqrt(axes) * shift
        matrix = torch.matrix_exp(_antisymmetric(angle, axes)) * growth.exp()[..., None]
        mm = pose.mm(image)
        flow = _affine_flow(matrix, shift, image, mm)
        inverse = matrix.inverse()
        back = _affine_flow(inverse, -(inverse @ shift[..., None])[..., 0], image, mm)
        return Rendered(warped(image, flow), flow, back)


def _antisymmetric(angle: Float[Tensor, "b t"], axes: int) -> Float[Tensor, "b n n"]:
    upper = torch.zeros(len(angle), axes, axes, device=angle.device, dtype=angle.dtype)
    rows, columns = torch.triu_indices(axes, axes, 1)
    upper = upper.index_put((torch.arange(len(angle))[:, None], rows[None], columns[None]), angle)
    return upper - upper.mT


def _affine_flow(
    matrix: Float[Tensor, "b n n"], shift: Float[Tensor, "b n"], image: Image, mm: Float[Tensor, "b n *ones"]
) -> Flow:
    place = centred(image, mm)
    change = (matrix - torch.eye(matrix.shape[1]).to(matrix)).to(place)
    moved = torch.einsum("bij,bj...->bi...", change, place)
    moved = moved + shift.to(place).view(*shift.shape, *(1 for _ in place.shape[2:]))
    return moved / mm
