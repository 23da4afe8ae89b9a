"""Attacks that ask the model for its scores alone: ZOO and SPSA, in a space of few dimensions.

A *query* is one image shown to the model: one forward pass of the batch asks once about each of its images. The score
is an objective of the log-odds; nothing is differentiated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from medseg_attack.attacks.judging import judge, judge_prediction
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.fields import stretched, zeros
from medseg_attack.numerics.samples import draw, reseeded, widen
from medseg_attack.registry import About, register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model, Objective, PerSample

FIRST, SECOND = 0.9, 0.999  # decays of Adam's moments, as in the papers


Score: TypeAlias = Callable[[Tensor], PerSample]  # of coefficients (b, c, *t)


Estimate: TypeAlias = Callable[[Score, Tensor, int], Tensor]  # (score, coefficients, step) -> gradient


@register("zoo", kind="attack", about=About(threat="queries (scores)", reaches="its ball", shown_by="zoo(queries=90)"))
@dataclass(frozen=True)
class ZOO:
    """Differences along single coordinates, climbed with Adam (Chen et al., arXiv 1708.03999).

    The coordinates are those of a coarse grid that is stretched onto the image, the paper's reduced attack space at
    one level; an objective within a ball takes the place of its weighted sum with the squared distance.

    Attributes:
        queries: that the model may be asked about each image, all included.
        coordinates: estimated per step, two queries each.
        grid: values per axis of the change; 0: every pixel.
        probe: half of a difference's width, as a fraction of the ball: as large as a stored grey level at least, or
            scores do not differ.
        step_size: Adam's, as a fraction of the ball.
        starts: random corners of the ball that are asked about first, one query each; the worst is begun from.
    """

    ball: Ball = Linf()
    objective: Objective = bce
    queries: int = 1000
    coordinates: int = 16
    grid: int = 8
    probe: float = 0.5
    step_size: float = 1.0
    starts: int = 8

    def __post_init__(self) -> None:
        require(self, coordinates=1, grid=0, starts=0)
        _check(self, 2 * self.coordinates)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        def estimate(score: Score, at: Tensor, step: int) -> Tensor:
            return by_coordinates(score, at, self.probe * self.ball.eps, reseeded(seeds, step), self.coordinates)

        return _climbed(self, model, image, target, seeds, estimate, 2 * self.coordinates)


@register(
    "spsa", kind="attack", about=About(threat="queries (scores)", reaches="its ball", shown_by="spsa(queries=90)")
)
@dataclass(frozen=True)
class SPSA:
    """Differences along random signs of all coordinates at once, climbed with Adam (Uesato et al., arXiv 1802.05666).

    Attributes:
        queries: that the model may be asked about each image, all included.
        directions: averaged per step, two queries each.
        grid: values per axis of the change; 0: every pixel, as in the paper.
        probe: half of a difference's width, as a fraction of the ball.
        step_size: Adam's, as a fraction of the ball.
        starts: random corners of the ball that are asked about first, one query each; the worst is begun from.
    """

    ball: Ball = Linf()
    objective: Objective = bce
    queries: int = 1000
    directions: int = 8
    grid: int = 16
    probe: float = 0.5
    step_size: float = 0.5
    starts: int = 8

    def __post_init__(self) -> None:
        require(self, directions=1, grid=0, starts=0)
        _check(self, 2 * self.directions)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        def estimate(score: Score, at: Tensor, step: int) -> Tensor:
            return by_signs(score, at, self.probe * self.ball.eps, reseeded(seeds, step), self.directions)

        return _climbed(self, model, image, target, seeds, estimate, 2 * self.directions)


def by_coordinates(score: Score, at: Tensor, width: float, seeds: Sequence[int], n: int) -> Tensor:
    """Central differences of `n` coordinates that each sample draws for itself, 0 elsewhere; 2 n queries."""
    flat = at.flatten(1)
    orders = [torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    order = torch.stack(orders).to(at.device)
    grad = torch.zeros_like(flat)
    for column in range(n):
        place = order[:, column % flat.shape[1]].unsqueeze(1)
        axis = torch.zeros_like(flat).scatter_(1, place, width).view_as(at)
        grad.scatter_(1, place, _slope(score, at, axis, width).to(flat).unsqueeze(1))
    return grad.view_as(at)


def by_signs(score: Score, at: Tensor, width: float, seeds: Sequence[int], n: int) -> Tensor:
    """The mean of `n` central differences along random signs, each times its signs; 2 n queries."""
    grad = torch.zeros_like(at)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(n):
        drawn = torch.stack([torch.randint(0, 2, at.shape[1:], generator=rng) for rng in generators])
        signs = 2 * drawn.to(at) - 1
        grad = grad + signs * widen(_slope(score, at, width * signs, width).to(at), at) / n
    return grad


def _slope(score: Score, at: Tensor, axis: Tensor, width: float) -> PerSample:
    """In double precision: the two scores are nearly equal."""
    return (score(at + axis) - score(at - axis)) / (2 * width) if width > 0 else score(at) * 0


def _climbed(
    attack: ZOO | SPSA,
    model: Model,
    image: Image,
    target: Mask,
    seeds: Sequence[int],
    estimate: Estimate,
    per_step: int,
) -> Adversarial:
    """Adam on the coefficients with estimated gradients; the worst iterate of each sample."""
    ball, eps = attack.ball, attack.ball.eps
    coarse, moves = ball.unrestricted, ball.free(image)  # a region is one of pixels, which coefficients are not
    objective = for_task(attack.objective, model.task)

    def shown(change: Tensor) -> Image:
        return image + stretched(change, tuple(image.shape[2:])) * moves

    @torch.no_grad()
    def score(change: Tensor) -> PerSample:
        return objective(model(shown(change).clamp(0, 1)).double(), target, 1.0)

    best = judge(model, ball, image, image, target)
    change = zeros(image, attack.grid)
    worst = torch.full((len(image),), -torch.inf, dtype=torch.float64, device=image.device)
    for start in range(attack.starts):
        signs = (draw(torch.rand, change, reseeded(seeds, -1 - start)) < 0.5).to(change) * 2 - 1
        corner = coarse.clipped(coarse.step(signs, change))
        x = ball.project(shown(corner), image)
        with torch.no_grad():
            log_odds = model(x)
        best |= judge_prediction(model, ball, x, image, model.decide(log_odds), target)
        found = objective(log_odds.double(), target, 1.0)
        change = torch.where(widen(found > worst, change), corner, change)
        worst = torch.maximum(found, worst)
    mean, square, times = torch.zeros_like(change), torch.zeros_like(change), torch.zeros_like(change)
    for step in range(1, (attack.queries - 1 - attack.starts) // (per_step + 1) + 1):
        grad = estimate(score, change, step)
        told = grad != 0  # a coordinate that was not asked about, or that said nothing, stays
        times = times + told
        mean = torch.where(told, FIRST * mean + (1 - FIRST) * grad, mean)
        square = torch.where(told, SECOND * square + (1 - SECOND) * grad.square(), square)
        unbiased = mean / (1 - FIRST**times).clamp(min=1 - FIRST)
        size = (square / (1 - SECOND**times).clamp(min=1 - SECOND)).sqrt()
        change = coarse.clipped(change + attack.step_size * eps * told * unbiased / (size + 1e-12))
        x = ball.project(shown(change), image)
        with torch.no_grad():
            best |= judge_prediction(model, ball, x, image, model.decide(model(x)), target)
    return best


def _check(attack: ZOO | SPSA, per_step: int) -> None:
    """Refuses lengths that are not positive, and fewer queries than the starts and one step take."""
    for name, value in (("probe", attack.probe), ("step_size", attack.step_size)):
        if not 0 < value < math.inf:
            raise InputError(f"expected {name} above 0, got {value}; write {name}=0.5")
    needed = per_step + 2 + attack.starts
    if attack.queries < needed:
        raise InputError(
            f"expected queries >= {needed} ({attack.starts} starts, {per_step + 1} of one step, 1 of the untouched "
            f"image), got {attack.queries}; allow more"
        )
