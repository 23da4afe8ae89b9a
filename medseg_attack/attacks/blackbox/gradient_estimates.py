"""ZOO and SPSA, which estimate gradients from the model's scores, in a space of few dimensions.

A *query* is one image shown to the model: one forward pass of a batch asks once about each of its images. The score
is an objective of the log-odds; nothing is differentiated. The change of an image is stretched from coefficients
(b, c, *t) on a coarse grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from medseg_attack.attacks.climbing import Climbing
from medseg_attack.attacks.judging import judge, judge_prediction
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.fields import stretched, zeros
from medseg_attack.numerics.samples import TINY, draw_signs, reseeded, widen
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import bounds_length, scale_of, to_edge
from medseg_attack.types import Adversarial, Image, Mask, Model, PerSample

BETA1, BETA2 = 0.9, 0.999  # decays of Adam's moments, as in the papers
Score: TypeAlias = Callable[[Tensor], PerSample]  # coefficients (b, c, *t) -> objective
Estimate: TypeAlias = Callable[[Score, Tensor, float, Sequence[int], int], Tensor]  # as `by_signs`


@register(
    "zoo",
    kind="attack",
    cost="(queries - 1 - starts) // (2 * coordinates + 1) * (2 * coordinates + 1) + 1 + starts forward, 0 backward",
    threat="queries (scores)",
    reaches="its ball",
    shown_by="zoo(queries=90)",
)
@dataclass(frozen=True)
class ZOO(Climbing):
    """Adam on gradients estimated from scores, one coordinate at a time (Chen et al., arXiv 1708.03999).

    The coordinates are those of a coarse grid that is stretched onto the image, the paper's reduced attack space at
    one level. The attack makes the objective large within a ball, where the paper adds the squared distance to it.

    Attributes:
        queries: number of times that the model may be asked about each image, the untouched one and all iterates
            included; enough for `starts` and one step.
        coordinates: number of coordinates estimated per step, 1 or more, two queries each.
        grid: number of the change's values per axis, 0 or more; 0 is one per pixel.
        probe: half of a difference's width, above 0, as a share of how far each value may go: eps in linf,
            eps / sqrt(n) in l2, 1 in l0. Below a stored grey level scores do not differ.
        step_size: Adam's learning rate as a share of the same, above 0.
        starts: number of random corners of the ball that are tried first, 0 or more, one query each; the ascent begins
            at the worst.

    Raises:
        InputError: a field is out of range, or the queries do not suffice for one step.
    """

    queries: int = 1000
    coordinates: int = 16
    grid: int = 8
    probe: float = 0.5
    step_size: float = 1.0
    starts: int = 8

    def __post_init__(self) -> None:
        require(self, coordinates=1)
        _check(self, 2 * self.coordinates)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        return _ascend(self, by_coordinates, self.coordinates, model, image, target, seeds)


@register(
    "spsa",
    kind="attack",
    cost="(queries - 1 - starts) // (2 * directions + 1) * (2 * directions + 1) + 1 + starts forward, 0 backward",
    threat="queries (scores)",
    reaches="its ball",
    shown_by="spsa(queries=90)",
)
@dataclass(frozen=True)
class SPSA(Climbing):
    """Adam on gradients estimated from scores, along random signs of all pixels (Uesato et al., arXiv 1802.05666).

    Attributes:
        queries: number of times that the model may be asked about each image, the untouched one and all iterates
            included; enough for `starts` and one step.
        directions: number of random directions averaged per step, 1 or more, two queries each.
        grid: number of the change's values per axis, 0 or more; 0 is one per pixel, as in the paper.
        probe: half of a difference's width, above 0, as a share of how far each value may go: eps in linf,
            eps / sqrt(n) in l2, 1 in l0.
        step_size: Adam's learning rate as a share of the same, above 0.
        starts: number of random corners of the ball that are tried first, 0 or more, one query each; the ascent begins
            at the worst.

    Raises:
        InputError: a field is out of range, or the queries do not suffice for one step.
    """

    queries: int = 1000
    directions: int = 8
    grid: int = 16
    probe: float = 0.5
    step_size: float = 0.5
    starts: int = 8

    def __post_init__(self) -> None:
        require(self, directions=1)
        _check(self, 2 * self.directions)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        return _ascend(self, by_signs, self.directions, model, image, target, seeds)


def by_coordinates(score: Score, x: Tensor, width: float, seeds: Sequence[int], n: int) -> Tensor:
    """Central differences of the score at `x` along `n` coordinates drawn for each sample, 0 elsewhere; 2 n queries.

    Args:
        width: half of a difference's width.
    """
    flat = x.flatten(1)
    orders = [torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    order = torch.stack(orders).to(x.device)
    grad = torch.zeros_like(flat)
    for column in range(n):
        coordinate = order[:, column % flat.shape[1]].unsqueeze(1)
        probe = torch.zeros_like(flat).scatter_(1, coordinate, width).view_as(x)
        grad.scatter_(1, coordinate, _slope(score, x, probe, width).to(flat).unsqueeze(1))
    return grad.view_as(x)


def by_signs(score: Score, x: Tensor, width: float, seeds: Sequence[int], n: int) -> Tensor:
    """The mean of `n` central differences of the score at `x` along random signs, times those signs; 2 n queries.

    Args:
        width: half of a difference's width.
    """
    grad = torch.zeros_like(x)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(n):
        bits = torch.stack([torch.randint(0, 2, x.shape[1:], generator=rng) for rng in generators])
        signs = 2 * bits.to(x) - 1
        grad = grad + signs * widen(_slope(score, x, width * signs, width).to(x), x) / n
    return grad


def _slope(score: Score, x: Tensor, probe: Tensor, width: float) -> PerSample:
    """The central difference of the score along `probe`, in double precision: the two scores are nearly equal."""
    return (score(x + probe) - score(x - probe)) / (2 * width)


def _ascend(
    attack: ZOO | SPSA, estimate: Estimate, n: int, model: Model, image: Image, target: Mask, seeds: Sequence[int]
) -> Adversarial:
    """The worst iterate of each sample when Adam climbs the coefficients along estimated gradients.

    Coefficients are multiples of how far each value may go: of eps in linf, of eps / sqrt(n) in l2, of 1 in l0.
    """
    ball, free = attack.ball, attack.ball.free(image)
    coarse = ball.unrestricted  # a region is one of pixels, which coefficients are not
    unit = scale_of(ball, image).flatten(2).amax(2).view(*image.shape[:2], *(1 for _ in image.shape[2:]))
    objective = attack.climbed(model)

    def changed(coefficients: Tensor) -> Image:
        return image + stretched(unit * coefficients, tuple(image.shape[2:])) * free

    @torch.no_grad()
    def score(coefficients: Tensor) -> PerSample:
        return objective(model(changed(coefficients).clamp(0, 1)).double(), target, 1.0)

    def held(coefficients: Tensor) -> Tensor:
        """The coefficients, cut to the ball."""
        if not bounds_length(ball):
            return coarse.clipped(unit * coefficients) / (unit + TINY)
        return coefficients * widen(to_edge(ball, changed(coefficients), image).clamp(max=1), coefficients)

    def corner(seeds: Sequence[int]) -> Tensor:
        """Random coefficients that lead to the edge of the ball."""
        signs = draw_signs(coefficients, seeds)
        if not bounds_length(ball):
            return coarse.clipped(coarse.step(signs, torch.full_like(signs, 0.5))) / (unit + TINY)
        return signs * widen(to_edge(ball, changed(signs), image), signs)

    worst = judge(model, ball, image, image, target)
    coefficients = zeros(image, attack.grid)
    highest = torch.full((len(image),), -torch.inf, dtype=torch.float64, device=image.device)
    for start in range(attack.starts):
        trial = corner(reseeded(seeds, -1 - start))
        x = ball.project(changed(trial), image)
        with torch.no_grad():
            log_odds = model(x)
        worst |= judge_prediction(model, ball, x, image, model.decide(log_odds), target)
        height = objective(log_odds.double(), target, 1.0)
        coefficients = torch.where(widen(height > highest, coefficients), trial, coefficients)
        highest = torch.maximum(height, highest)
    mean, square, times = (torch.zeros_like(coefficients) for _ in range(3))
    for step in range(1, (attack.queries - 1 - attack.starts) // (2 * n + 1) + 1):
        grad = estimate(score, coefficients, attack.probe, reseeded(seeds, step), n)
        known = grad != 0  # other coordinates stay: they were not drawn, or the score did not differ
        times = times + known
        mean = torch.where(known, BETA1 * mean + (1 - BETA1) * grad, mean)
        square = torch.where(known, BETA2 * square + (1 - BETA2) * grad.square(), square)
        mean_unbiased = mean / (1 - BETA1**times).clamp(min=1 - BETA1)
        deviation = (square / (1 - BETA2**times).clamp(min=1 - BETA2)).sqrt()
        coefficients = held(coefficients + attack.step_size * known * mean_unbiased / (deviation + 1e-12))
        x = ball.project(changed(coefficients), image)
        with torch.no_grad():
            worst |= judge_prediction(model, ball, x, image, model.decide(model(x)), target)
    return worst


def _check(attack: ZOO | SPSA, per_step: int) -> None:
    """Refuses lengths that are not positive, and fewer queries than the starts and one step take."""
    require(attack, probe="(0, inf)", step_size="(0, inf)", grid=0, starts=0)
    needed = per_step + 2 + attack.starts
    if attack.queries < needed:
        raise InputError(
            f"expected queries >= {needed} ({attack.starts} starts, {per_step + 1} of one step, 1 of the untouched "
            f"image), got {attack.queries}; write queries={needed} or more"
        )
