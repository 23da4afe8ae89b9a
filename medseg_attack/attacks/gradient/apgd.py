"""Auto-PGD: projected gradient ascent that adapts its step size for each sample, with or without wider balls first."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch
from jaxtyping import Bool
from torch import Tensor

from medseg_attack.attacks.climbing import Climbing, visit
from medseg_attack.attacks.judging import judge_prediction
from medseg_attack.attacks.keeping import UNITS, Kept, units
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.samples import reseeded, widen
from medseg_attack.numerics.slabs import by_slab
from medseg_attack.registry import register, with_eps
from medseg_attack.threat.objectives.per_task import progress_of
from medseg_attack.types import Adversarial, Ball, Bindable, Image, LogOdds, Mask, Model, Objective, PerSample, taken

RHO = 0.75  # the share of the steps between two checks that must raise the objective
ALPHA = 0.75  # the weight of a new step; the rest is the step before it again
SHARE_PER_WIDER_BALL = 0.3  # of all steps, for each of the radii before the last (arXiv 2306.12941)


def checkpoints(steps: int) -> list[int]:
    """The numbers of steps after which APGD may halve its step size (arXiv 2003.01690, sec. 3.1).

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    period, decrease, least = (max(steps * percent // 100, 1) for percent in (22, 3, 6))
    checks, step = [], period
    while step <= steps:
        checks.append(step)
        period = max(period - decrease, least)
        step += period
    return checks


def phases(steps: int, radii: Sequence[float]) -> list[tuple[float, int]]:
    """The radius, a multiple of eps, and the number of steps of each phase.

    >>> phases(300, (2.0, 1.5, 1.0)), phases(20, (2.0, 1.5, 1.0))
    ([(2.0, 90), (1.5, 90), (1.0, 120)], [(2.0, 6), (1.5, 6), (1.0, 8)])
    """
    wider = int(SHARE_PER_WIDER_BALL * steps)
    return [(radius, wider) for radius in radii[:-1]] + [(radii[-1], steps - wider * (len(radii) - 1))]


@dataclass(frozen=True, eq=False)
class _Point:
    """An iterate of the ascent, with the objective's value and gradient there."""

    x: Image
    height: PerSample
    grad: Image

    def where(self, take: Bool[Tensor, "b"], other: "_Point") -> "_Point":
        """The other point in the samples of `take`, this one elsewhere."""
        return _Point(
            taken(take, other.x, self.x), taken(take, other.height, self.height), taken(take, other.grad, self.grad)
        )


@register(
    "apgd",
    kind="attack",
    cost="restarts * (steps + count(radii)) + 1 forward, restarts * steps backward",
    reaches="all in eps",
    shown_by="apgd(steps=20)",
)
@dataclass(frozen=True)
class APGD(Climbing, Bindable):
    """Gradient ascent whose steps are halved where they stop paying (Auto-PGD; Croce & Hein, arXiv 2003.01690).

    Steps begin at twice the ball. When it halves its step it returns to the iterate with the largest objective; the
    result is each sample's most harmful iterate. An objective that masks what is lost steers the steps alone: its
    unmasked form decides whether they pay (arXiv 2306.12941).

    Attributes:
        steps: gradients in all phases together, 1 or more.
        radii: radii of the balls that it goes through, as multiples of eps, each 1 or more; the last must be 1.
            (2, 1.5, 1) is the schedule of arXiv 2306.12941: 30 % of the steps in each of the first two balls.
        unit: what has one Dice. "slice": each image is a score of its own, as published. "volume": of each slice the
            iterate is kept that lowers Dice of its whole volume most, as far as its slices are in one batch.

    Raises:
        InputError: `radii` is empty, does not end with 1 or has a radius below 1; there is no such unit, or anatomy
            moves where volumes are scored.
    """

    steps: int = 100
    restarts: int = 1
    radii: tuple[float, ...] = (1.0,)
    unit: str = "slice"

    def __post_init__(self) -> None:
        require(self, steps=1, restarts=1, unit=UNITS)
        if not self.radii or self.radii[-1] != 1 or min(self.radii) < 1:
            raise InputError(f"expected radii of at least 1 that end with 1, got {self.radii}; write (2, 1.5, 1)")
        if self.unit == "volume" and self.ball.moves_anatomy:
            raise InputError("expected unit='slice' for apgd in a ball that moves anatomy, got 'volume'; write it")

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        with torch.no_grad():
            pred = model.decide(model(image))
        cases = () if self.setting is None else self.setting.cases
        kept = Kept(model.task, image, pred, target, units(self.unit, cases, image)) if self.unit == "volume" else None
        runs = (
            self._run(model, image, target, reseeded(seeds, run) if run else seeds, kept)
            for run in range(self.restarts)
        )
        worst = reduce(or_, runs, judge_prediction(model, self.ball, image, image, pred, target))
        return worst if kept is None else kept.result(self.ball, image)

    def _run(self, model: Model, image: Image, target: Mask, seeds: Sequence[int], kept: Kept | None) -> Adversarial:
        worst, done = None, 0
        for number, (radius, steps) in enumerate(phases(self.steps, self.radii), 1):
            wide = self.ball.eps * radius
            # the ball itself where a wider one would hold every image
            ball: Ball = with_eps(self.ball, wide) if wide < 1 or self.ball.eps >= 1 else self.ball
            x = ball.sample(image, seeds) if worst is None else ball.project(worst.image, image)
            last = number == len(self.radii)  # before it, iterates may lie outside of the ball
            ascent = _Ascent(model, ball, self.climbed(model), image, target, self.steps, kept if last else None)
            worst, done = ascent.climb(x, steps, done), done + steps
        assert worst is not None
        return worst


@dataclass(frozen=True, eq=False)
class _Ascent:
    """One phase of the attack: an ascent in a fixed ball around the image.

    Attributes:
        total: steps of the whole attack, of which the objective gets the fraction that is done.
        kept: gets every iterate, where slices of one volume are scored together.
    """

    model: Model
    ball: Ball
    objective: Objective
    image: Image
    target: Mask
    total: int
    kept: Kept | None

    def climb(self, x: Image, steps: int, done: int) -> Adversarial:
        """The most harmful of the iterates, per sample; `done` steps of the attack lie before this phase."""
        if steps == 0:
            return self._judge(x)
        point, worst = self._evaluate(x, done)
        highest, previous = point, x
        size = torch.full_like(point.height, 2.0)  # of a step, as a fraction of the ball
        rises = torch.zeros_like(size)
        halved, height_at_check, last_check = torch.ones_like(size, dtype=torch.bool), highest.height, 0
        for step in range(1, steps + 1):
            x, previous = self._step(point, previous, size, 1.0 if step == 1 else ALPHA), point.x
            if step == steps:  # the last iterate needs no gradient
                break
            new, judged = self._evaluate(x, done + step)
            worst |= judged
            rises = rises + (new.height > point.height)
            highest = highest.where(new.height > highest.height, new)
            point = new
            if step in checkpoints(steps):
                few = rises <= RHO * (step - last_check)
                stuck = ~halved & (highest.height <= height_at_check)
                halved, height_at_check, last_check = few | stuck, highest.height, step
                size = torch.where(halved, size / 2, size)
                point, rises = point.where(halved, highest), torch.zeros_like(rises)
        return worst | self._judge(x)

    def _step(self, point: _Point, previous: Image, size: PerSample, alpha: float) -> Image:
        """The next iterate: a projected step, and the step before it once more with weight 1 - alpha."""
        x = point.x
        x_moved = by_slab(lambda x, move: x + widen(size, x) * move, x, self.ball.step(point.grad, x))
        ahead = self.ball.project(x_moved, self.image)
        del x_moved

        def averaged(x: Image, ahead: Image, previous: Image) -> Image:
            return x + alpha * (ahead - x) + (1 - alpha) * (x - previous)

        return self.ball.project(by_slab(averaged, x, ahead, previous), self.image)

    def _evaluate(self, x: Image, done: int) -> tuple[_Point, Adversarial]:
        """The objective and its gradient at `x`, and `x` with its harm, all of one forward pass."""
        judged, log_odds, height, grad = visit(
            self.model, self.ball, self.objective, x, self.image, self.target, done / self.total
        )
        self._keep(x, log_odds)
        unmasked = progress_of(self.objective)
        return _Point(x.detach(), height if unmasked is None else unmasked(log_odds, self.target, 1.0), grad), judged

    def _judge(self, x: Image) -> Adversarial:
        """The last iterate with its harm; no gradient."""
        with torch.no_grad():
            log_odds = self.model(x)
        self._keep(x, log_odds)
        return judge_prediction(self.model, self.ball, x, self.image, self.model.decide(log_odds), self.target)

    def _keep(self, x: Image, log_odds: LogOdds) -> None:
        if self.kept is not None:
            self.kept.offer(x, self.model.decide(log_odds), torch.arange(len(x), device=x.device))
