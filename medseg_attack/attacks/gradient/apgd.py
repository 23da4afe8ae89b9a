"""Auto-PGD: projected ascent that finds its own step size, per sample, and its start from wider balls."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch
from jaxtyping import Bool
from torch import Tensor

from medseg_attack.attacks.judging import judge, judge_prediction
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.samples import reseeded, widen
from medseg_attack.registry import About, register, with_eps
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.threat.objectives.per_task import for_task, progress_of
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model, Objective, PerSample

OFTEN = 0.75  # the share of a block's steps that must raise the objective (rho of the paper)


FORWARD = 0.75  # of a step, the rest is the last step again (alpha of the paper)


WIDER = 0.3  # of all steps, for each of the radii before the last


def checkpoints(steps: int) -> list[int]:
    """After how many steps the step size is looked at (arXiv 2003.01690, sec. 3.1).

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    block, less, least = (max(steps * percent // 100, 1) for percent in (22, 3, 6))
    found, at = [], block
    while at <= steps:
        found.append(at)
        block = max(block - less, least)
        at += block
    return found


def phases(steps: int, radii: Sequence[float]) -> list[tuple[float, int]]:
    """Radius and number of steps of each phase.

    >>> phases(300, (2.0, 1.5, 1.0)), phases(20, (2.0, 1.5, 1.0))
    ([(2.0, 90), (1.5, 90), (1.0, 120)], [(2.0, 6), (1.5, 6), (1.0, 8)])
    """
    before = int(WIDER * steps)
    return [(radius, before) for radius in radii[:-1]] + [(radii[-1], steps - before * (len(radii) - 1))]


@dataclass(frozen=True, eq=False)
class _Point:
    """Where an attack is, how high that is, and which way is up."""

    x: Image
    height: PerSample
    grad: Image

    def where(self, take: Bool[Tensor, "b"], other: "_Point") -> "_Point":
        """Per sample the other where `take`."""
        return _Point(
            torch.where(widen(take, self.x), other.x, self.x),
            torch.where(take, other.height, self.height),
            torch.where(widen(take, self.x), other.grad, self.grad),
        )


@register("apgd", kind="attack", about=About(reaches="all in eps", shown_by="apgd(steps=20)"))
@dataclass(frozen=True)
class APGD:
    """Auto-PGD (Croce & Hein, arXiv 2003.01690): steps of twice the ball, halved where they stop paying.

    Its own best point, to which it returns when it halves, is that of the objective; what is returned is each
    sample's most harmful iterate. An objective that masks what is lost steers the steps alone: whether they pay is
    told by its unmasked form (arXiv 2306.12941).

    Attributes:
        radii: of the balls that it goes through, as multiples of `ball`; the last must be 1. (2, 1.5, 1) is the
            schedule of arXiv 2306.12941: 30 % of the steps at each of the first two.
    """

    ball: Ball = Linf()
    objective: Objective = bce
    steps: int = 100
    restarts: int = 1
    radii: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        require(self, steps=1, restarts=1)
        if not self.radii or self.radii[-1] != 1 or min(self.radii) < 1:
            raise InputError(f"expected radii of at least 1 that end with 1, got {self.radii}; write (2, 1.5, 1)")

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        runs = (self._run(model, image, target, reseeded(seeds, run) if run else seeds) for run in range(self.restarts))
        return reduce(or_, runs, judge(model, self.ball, image, image, target))

    def _run(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        x, found, done = None, None, 0
        for radius, steps in phases(self.steps, self.radii):
            ball = _widened(self.ball, radius)
            x = ball.sample(image, seeds) if x is None else ball.project(x, image)
            found = _Ascent(model, ball, for_task(self.objective, model.task), image, target, self.steps).climb(
                x, steps, done
            )
            x, done = found.image, done + steps
        assert found is not None
        return found


def _widened(ball: Ball, radius: float) -> Ball:
    """The ball at a multiple of its budget; as it is where that would hold every image."""
    wider: Ball = with_eps(ball, ball.eps * radius) if ball.eps * radius < 1 or ball.eps >= 1 else ball
    return wider


@dataclass(frozen=True, eq=False)
class _Ascent:
    """One phase: a fixed ball around the image.

    Attributes:
        total: steps of the whole attack, of which objectives are told the fraction that is done.
    """

    model: Model
    ball: Ball
    objective: Objective
    image: Image
    target: Mask
    total: int

    def climb(self, x: Image, steps: int, done: int) -> Adversarial:
        """The most harmful of the iterates."""
        if steps == 0:
            return judge(self.model, self.ball, x, self.image, self.target)
        here, found = self._look(x, done)
        best, before = here, x
        size = torch.full_like(here.height, 2.0)  # of a step, as a fraction of the ball
        rises = torch.zeros_like(size)
        halved, best_then, last = torch.ones_like(size, dtype=torch.bool), best.height, 0
        for step in range(1, steps + 1):
            x, before = self._moved(here, before, size, 1.0 if step == 1 else FORWARD), here.x
            if step == steps:  # where it ends, no gradient is needed
                return found | judge(self.model, self.ball, x, self.image, self.target)
            there, seen = self._look(x, done + step)
            found |= seen
            rises = rises + (there.height > here.height)
            best = best.where(there.height > best.height, there)
            here = there
            if step in checkpoints(steps):
                few = rises <= OFTEN * (step - last)
                stuck = ~halved & (best.height <= best_then)
                halved, best_then, last = few | stuck, best.height, step
                size = torch.where(halved, size / 2, size)
                here, rises = here.where(halved, best), torch.zeros_like(rises)
        return found

    def _moved(self, here: _Point, before: Image, size: PerSample, forward: float) -> Image:
        x = here.x
        there = self.ball.project(x + widen(size, x) * self.ball.step(here.grad, x), self.image)
        return self.ball.project(x + forward * (there - x) + (1 - forward) * (x - before), self.image)

    def _look(self, x: Image, done: int) -> tuple[_Point, Adversarial]:
        x = x.detach().requires_grad_()
        log_odds = self.model(x)
        climbed = self.objective(log_odds, self.target, done / self.total)
        (grad,) = torch.autograd.grad(climbed.sum(), x)
        log_odds = log_odds.detach()
        watched = progress_of(self.objective)
        height = climbed.detach() if watched is None else watched(log_odds, self.target, 1.0)
        seen = judge_prediction(self.model, self.ball, x, self.image, self.model.decide(log_odds), self.target)
        return _Point(x.detach(), height, grad), seen
