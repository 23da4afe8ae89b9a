"""The square attack: a random search that asks the model for its scores alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.climbing import Climbing
from medseg_attack.attacks.judging import judge_prediction
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.samples import TINY, draw, draw_signs, length, reseeded, widen
from medseg_attack.registry import register, spec
from medseg_attack.threat.balls.channels import Channels
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.objectives.losses import soft_dice
from medseg_attack.types import Adversarial, Ball, Image, LogOdds, Mask, Model, Objective, PerSample

HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10000 queries, as in the released code


def share(query: int, queries: int, first: float) -> float:
    """The share of the image that a query's square covers; queries count from 0.

    Args:
        first: share of query 0, in (0, 1].

    >>> share(0, 10000, 0.8), share(11, 10000, 0.8), share(9000, 10000, 0.8)
    (0.8, 0.4, 0.0015625)
    """
    return first / 2.0 ** sum(query * 10000 // queries > halving for halving in HALVED)


@register(
    "square",
    kind="attack",
    cost="queries forward, 0 backward",
    threat="queries (scores)",
    reaches="its ball",
    shown_by="square(queries=90)",
)
@dataclass(frozen=True)
class Square(Climbing):
    """A search with random squares, kept where they raise the objective (Andriushchenko et al., arXiv 1912.00049).

    Every query is one forward pass. Squares reach the last row and column, which those of the released code never do;
    in 3-D they are cubes. The result is each sample's most harmful query.

    Attributes:
        ball: a ball of linf or l2, possibly in a region; linf may be in some channels alone.
        objective: score of a query; soft_dice, since a change that wins a margin but no Dice is of no use.
        queries: number of times that the model is asked about each image, 1 or more.
        first: share of the image that the first squares cover, in (0, 1]; the paper's 0.8 is for one answer per image.

    Raises:
        InputError: a field is out of range, or the ball is of another norm.
    """

    objective: Objective = soft_dice
    queries: int = 1000
    first: float = 0.3

    def __post_init__(self) -> None:
        require(self, queries=1)
        if not 0 < self.first <= 1:
            raise InputError(f"expected 0 < first <= 1, a share of the image, got {self.first:g}; write such as 0.3")
        if not self._linf and type(self.ball.unrestricted) is not L2:
            raise InputError(f"expected linf or l2 for square, got {spec(self.ball)}; write linf(4/255)")

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        search = _InLinf(self.ball, image) if self._linf else _InL2(self.ball, image)
        x = search.start(reseeded(seeds, "first"))
        height, worst = self._evaluate(model, x, image, target)
        for query in range(1, self.queries):
            trial = search.next(x, share(query - 1, self.queries, self.first), reseeded(seeds, query))
            trial_height, judged = self._evaluate(model, trial, image, target)
            worst |= judged
            higher = trial_height > height
            x, height = torch.where(widen(higher, x), trial, x), torch.where(higher, trial_height, height)
        return worst

    @property
    def _linf(self) -> bool:
        """Whether the ball bounds each pixel by itself, possibly in a region or in some channels alone."""
        ball = self.ball.unrestricted
        return type(ball.ball if isinstance(ball, Channels) else ball) is Linf

    def _evaluate(self, model: Model, x: Image, image: Image, target: Mask) -> tuple[PerSample, Adversarial]:
        """The objective at `x`, and `x` with its harm; one query."""
        with torch.no_grad():
            log_odds: LogOdds = model(x)
            height = self.climbed(model)(log_odds, target, 1.0)
        return height, judge_prediction(model, self.ball, x, image, model.decide(log_odds), target)


@dataclass(frozen=True, eq=False)
class _InLinf:
    """The search in linf: every pixel changes by eps up or down, with one sign per square and channel."""

    ball: Ball
    image: Image

    def start(self, seeds: Sequence[int]) -> Image:
        """The first query: stripes along the first axis."""
        signs = draw_signs(self.image[:, :, :1], seeds)
        return self.ball.project(self.image + self.ball.eps * signs, self.image)

    def next(self, x: Image, share: float, seeds: Sequence[int]) -> Image:
        """The next query: `x` with a random square set to one end of its range."""
        inside, _ = _square(x, _side(x, share), seeds)
        signs = draw_signs(_corner(x), reseeded(seeds, "signs"))
        return self.ball.project(x + 2 * self.ball.eps * signs * inside, self.image)


@dataclass(frozen=True, eq=False)
class _InL2:
    """The search in l2: the change has length eps; a step moves the change of one square to another.

    Sides of squares are odd, 3 or more.
    """

    ball: Ball
    image: Image

    def start(self, seeds: Sequence[int]) -> Image:
        """The first query: bumps on a lattice, each a fifth of the image wide."""
        delta, shape = torch.zeros_like(self.image), self.image.shape[2:]
        side = max(min(shape) // 5, 1)
        tiles = torch.cartesian_prod(*(torch.arange(0, n - side + 1, side) for n in shape)).view(-1, len(shape))
        for number, corner in enumerate(tiles.tolist()):
            corners = torch.tensor([corner] * len(self.image), device=delta.device)
            delta += _bump(self.image, corners, side, reseeded(seeds, number))
        return self._stepped(delta)

    def next(self, x: Image, share: float, seeds: Sequence[int]) -> Image:
        """The next query: the change of one square goes to another, with a new bump and all unspent length."""
        delta = x - self.image
        # odd, 3 or more as in the released code: a bump of fewer pixels has no hills
        side = min(max(_side(x, share) // 2 * 2 + 1, 3), (min(x.shape[2:]) - 1) // 2 * 2 + 1)
        square, corner = _square(x, side, seeds)
        source, _ = _square(x, side, reseeded(seeds, "there"))
        axes = tuple(range(2, x.ndim))

        def length_of_channel(part: Tensor) -> Tensor:
            return part.square().sum(axes, keepdim=True).sqrt()

        unspent = (self.ball.eps**2 - delta.flatten(1).square().sum(1)).clamp(min=0) / x.shape[1]
        either = torch.maximum(square, source)
        available = (widen(unspent, x) + length_of_channel(delta * either).square()).sqrt()
        bump = _bump(x, corner, side, reseeded(seeds, "bump"))
        old = delta * square
        new = bump + old / (length_of_channel(old) + TINY)
        new = new / (length_of_channel(new) + TINY) * available
        return self._stepped(delta * (1 - either) + new)

    def _stepped(self, delta: Image) -> Image:
        """The image with the change scaled to length eps."""
        return self.ball.project(self.image + self.ball.step(delta, self.image), self.image)


def _corner(x: Image) -> Tensor:
    """The first pixel of every channel, (b, c, 1, ...)."""
    return x[(slice(None), slice(None), *(slice(0, 1) for _ in x.shape[2:]))]


def _side(x: Image, share: float) -> int:
    """The side in pixels of a square that covers a share of the image, at most the image's shortest side."""
    shape = x.shape[2:]
    side: int = min(max(round((share * x[0, 0].numel()) ** (1 / len(shape))), 1), *shape)
    return side


def _square(x: Image, side: int, seeds: Sequence[int]) -> tuple[Float[Tensor, "b 1 *s"], Tensor]:
    """A random square of each image, 1 inside and 0 elsewhere, and its first corner (b, axes)."""
    shape = x.shape[2:]
    room = torch.tensor([n - side + 1 for n in shape], dtype=x.dtype, device=x.device)
    like = x[:, :1].flatten(1)[:, :1].expand(-1, len(shape))
    corner = (draw(torch.rand, like, seeds) * room).long()
    return (_offsets(x, corner, side) >= 0).all(0).to(x), corner


def _offsets(x: Image, corner: Tensor, side: int) -> Tensor:
    """Each pixel's index within its image's square along every axis, (axes, b, 1, *s); -1 outside of it."""
    offsets = []
    for axis, n in enumerate(x.shape[2:]):
        index = torch.arange(n, device=x.device).view(1, 1, *(n if other == axis else 1 for other in range(x.ndim - 2)))
        offset = index - widen(corner[:, axis], x)
        outside = (offset < 0) | (offset >= side)
        offsets.append(torch.where(outside, -1, offset).expand(-1, -1, *x.shape[2:]))
    return torch.stack(offsets)


def _bump(x: Image, corner: Tensor, side: int, seeds: Sequence[int]) -> Image:
    """Two opposite hills side by side in each image's square, each as long as the other, together of length 1.

    A hill falls off from its middle as sum_{k = r}^{n} 1/(k + 1)^2, where r is the largest distance along an axis and
    n half of the side (algorithm 3 of the paper). On an odd side the second hill has a row more than the first.
    """
    offsets = _offsets(x, corner, side)
    inside = (offsets >= 0).all(0)
    axes, first = x.ndim - 2, side // 2
    like = x[:, :1].flatten(1)[:, :1]
    along = (draw(torch.rand, like, reseeded(seeds, "axis")).flatten() * axes).long()
    split = offsets.movedim(0, 1).gather(1, widen(along, offsets.movedim(0, 1)).expand(-1, 1, *offsets.shape[2:]))
    is_second = split[:, 0] >= first
    middle = torch.where(is_second, first + (side - first) // 2, first // 2)
    distance = torch.zeros_like(inside, dtype=torch.long)
    for axis, offset in enumerate(offsets):
        away = (offset - torch.where(widen(along == axis, x), middle, first)).abs()
        distance = torch.maximum(distance, away)
    falling = 1 / torch.arange(1, first + 2, dtype=x.dtype, device=x.device).square()
    height = falling.flip(0).cumsum(0).flip(0)[distance.clamp(max=first)] * inside
    hills = torch.zeros_like(height)
    for sign, chosen in ((1, ~is_second), (-1, is_second)):
        hill = height * chosen
        hills += sign * hill / (widen(length(hill), x) + TINY)
    hills = hills / (widen(length(hills), x) + TINY)
    return hills * draw_signs(_corner(x), reseeded(seeds, "signs"))
