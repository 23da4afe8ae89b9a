"""Bias fields on coordinates that a thin plate bends."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.physical.ascent import Numbers, Parametrised, Rendered, random_numbers
from medseg_attack.attacks.physical.bias_field import FieldStrength
from medseg_attack.errors import require
from medseg_attack.registry import register
from medseg_attack.types import Ball, Image

POINTS = 4  # of the plate along each axis


@register(
    "adv_sbf", kind="attack", cost="steps + 2 forward, steps backward", reaches="its ball", shown_by="adv_sbf(steps=4)"
)
@dataclass(frozen=True)
class ThinPlateBiasField(Parametrised):
    """The bias field on bent coordinates that harms most (AdvSBF; Tian et al., arXiv 2009.09247).

    The logarithm of the field is a polynomial of coordinates that a thin-plate spline bends at 4 points along each
    axis: `log x' = log x + sum a_tl T(p)_1^t T(p)_2^l`. Weights and bends are climbed together. Polynomials are
    Legendre's, since powers are nearly dependent; the paper's penalties on weights and bends are bounds here.

    Attributes:
        order: number of polynomials along each axis, 1 or more; their total degree is below it.
        bend: largest move of a point, as a share of half the image's side, from 0 to below 1.
        steps: of signed ascent, 0 or more; 0 draws field and bends at random.

    Raises:
        InputError: `order` or `bend` is out of range.
    """

    ball: Ball = FieldStrength()  # noqa: RUF009 - a frozen value
    order: int = 6
    bend: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, order=1, bend="[0, 1)")

    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        axes = image.ndim - 2
        return random_numbers(image, self.order**axes + axes * POINTS**axes, seeds)

    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        axes = image.ndim - 2
        weights, moves = torch.split(numbers, [self.order**axes, axes * POINTS**axes], dim=1)
        places = bent_coordinates(self.bend * moves.view(len(image), axes, -1), tuple(image.shape[2:]))
        field = polynomial_at(weights.view(len(image), *(self.order for _ in range(axes))), places)
        field = field / field.abs().flatten(1).amax(1).clamp(min=1).view(-1, 1, *(1 for _ in range(axes)))
        up, down = torch.log1p(torch.tensor([self.ball.eps, -self.ball.eps], dtype=torch.float64)).tolist()
        return Rendered(image * torch.exp(torch.where(field > 0, up * field, -down * field)))


def bent_coordinates(moves: Float[Tensor, "b n p"], grid: tuple[int, ...]) -> Float[Tensor, "b n *s"]:
    """Coordinates in [-1, 1] after a thin-plate spline that moves each of `p` points so far; cut at the edges.

    The spline is the smoothest one through these moves (Bookstein 1989): r^2 log r in 2-D, r in 3-D.
    """
    axes = len(grid)
    line = torch.linspace(-1, 1, POINTS, dtype=torch.float64)
    points = torch.tensor(list(product(line.tolist(), repeat=axes)), dtype=torch.float64)
    n = len(points)
    affine = torch.cat([torch.ones(n, 1, dtype=torch.float64), points], 1)
    system = torch.zeros(n + axes + 1, n + axes + 1, dtype=torch.float64)
    system[:n, :n] = _bending((points[:, None] - points[None]).square().sum(-1), axes)
    system[:n, n:], system[n:, :n] = affine, affine.T
    solver = torch.linalg.inv(system)[:, :n].to(moves)
    weights = moves @ solver.T  # (b, n, p + n + 1)
    lines = [torch.linspace(-1, 1, side, dtype=moves.dtype, device=moves.device) for side in grid]
    place = torch.stack(torch.meshgrid(*lines, indexing="ij"))
    shape = (*weights.shape[:2], *(1 for _ in grid))
    result: Tensor = place + weights[:, :, n].view(shape)
    for axis in range(axes):
        result = result + weights[:, :, n + 1 + axis].view(shape) * place[axis]
    for number, point in enumerate(points.to(moves)):
        distance = (place - point.view(-1, *(1 for _ in grid))).square().sum(0)
        result = result + weights[:, :, number].view(shape) * _bending(distance, axes)
    return result.clamp(-1, 1)


def _bending(square: Tensor, axes: int) -> Tensor:
    """The kernel of a thin plate, of squared distances."""
    if axes == 2:
        bending: Tensor = square * square.clamp(min=1e-30).log() / 2
        return bending
    return square.sqrt()


def polynomial_at(weights: Float[Tensor, "b *order"], places: Float[Tensor, "b n *s"]) -> Float[Tensor, "b 1 *s"]:
    """The sum of products of Legendre polynomials at coordinates in [-1, 1], total degree below the order."""
    order, axes = weights.shape[1], places.shape[1]
    legendre = [torch.ones_like(places), places]
    for k in range(1, order - 1):
        legendre.append(((2 * k + 1) * places * legendre[k] - k * legendre[k - 1]) / (k + 1))
    field = torch.zeros_like(places[:, :1])
    for degrees in product(range(order), repeat=axes):
        if sum(degrees) < order:
            number = sum(degree * order**axis for axis, degree in enumerate(reversed(degrees)))
            term = weights.flatten(1)[:, number].view(-1, *(1 for _ in places.shape[1:]))
            for axis, degree in enumerate(degrees):
                term = term * legendre[degree][:, axis : axis + 1]
            field = field + term
    return field
