"""The search for the least perturbation, as all attacks that look for it share it: measuring, keeping, returning.

Such an attack searches all of [0, 1], whatever its ball: the ball says in which norm changes are measured, and its eps
is the largest one that counts. A case whose least change is larger, or of which none was found, is a failure: the
untouched image comes back with `success` False, and tables count it as such. So one search serves every eps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.samples import widen
from medseg_attack.registry import spec_of
from medseg_attack.threat.goals.aim import Aim
from medseg_attack.threat.goals.base import Goal
from medseg_attack.threat.goals.criteria import ByPixels, Criterion
from medseg_attack.types import Adversarial, Ball, Image, LogOdds, Mask, Model

ROUNDING = 1e-9  # of a ball's size


@dataclass(frozen=True, eq=False)
class Search:
    """One search for the least change of each sample of a batch."""

    model: Model
    ball: Ball
    aim: Aim
    image: Image
    target: Mask

    def look(self, x: Image) -> tuple[Image, LogOdds]:
        """`x` as a leaf of the graph, and the model's log-odds on it."""
        x = x.detach().requires_grad_()
        return x, self.model(x)

    def excess(self, log_odds: LogOdds) -> Float[Tensor, "b n *s"]:
        """The distance of each entry from the boundary, in log-odds; > 0 is adversarial."""
        return self.aim.excess(log_odds, self.target)

    def candidate(self, x: Image, log_odds: LogOdds) -> Adversarial:
        """`x` with its size and its progress as harm, capped at success: so `|` keeps the smallest that succeeds."""
        progress = self.aim.progress(self.model.decide(log_odds.detach()), self.target).to(x)
        return Adversarial(x.detach(), progress, self.ball.size(x.detach(), self.image))

    def within(self, best: Adversarial, ball: Ball) -> Adversarial:
        """The best image where it succeeds in the ball, elsewhere the untouched one; judged in that ball."""
        success = (best.harm >= 1) & (best.size <= ball.limit * (1 + ROUNDING))
        x = torch.where(widen(success, best.image), best.image, self.image)
        # one more forward pass judges it
        passes = None if best.passes is None else best.passes + torch.tensor([1, 0], device=x.device)
        return replace(judge(self.model, ball, x, self.image, self.target), success=success, passes=passes)


class LeastChange(ABC):
    """An attack that looks for the least change; a frozen dataclass says how in `search`.

    Attributes:
        norms: names of the balls whose norm it can make small.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l0")

    ball: Ball
    goal: Goal | None
    success: Criterion

    def __post_init__(self) -> None:
        """Refuses a ball of a norm that it does not search in, and a number of steps below 1."""
        kind = spec_of(self.ball).name
        if kind == "within":
            raise InputError(
                "expected attacks in a ball for --region, got one of the least change, which searches the whole image; "
                "drop --region or that attack"
            )
        if kind not in self.norms:
            norms = " or ".join(self.norms)
            raise InputError(
                f"expected a ball of {norms}, the norm that is made small, got {kind}; write {self.norms[0]}(...)"
            )
        require(self, steps=1)

    @abstractmethod
    def search(self, search: Search) -> Adversarial:
        """The smallest success of each sample, or else its best progress; with passes, if samples stop separately."""

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        return next(self.sweep(model, image, target, seeds, [self.ball]))

    def sweep(
        self, model: Model, image: Image, target: Mask, seeds: Sequence[int], balls: Sequence[Ball]
    ) -> Iterator[Adversarial]:
        """One search, cut to each of several balls of one norm."""
        aim = Aim.of(self.goal, self.success, model.task)
        search = Search(model, max(balls, key=lambda ball: ball.limit), aim, image, target)
        best = self.search(search)
        for ball in balls:
            yield search.within(best, ball)


@dataclass(frozen=True)
class MinimalAttack(LeastChange):
    """An attack that looks for the least change with which a share of the pixels is adversarial, unless told else."""

    ball: Ball
    goal: Goal | None = None
    success: Criterion = ByPixels()


Moved: TypeAlias = tuple[Image, Int[Tensor, "b"] | int]  # the next image, and the backward passes that it took
Move: TypeAlias = Callable[[Image, LogOdds], Moved]  # takes a leaf and its log-odds


def walk(search: Search, steps: int, move: Move) -> Adversarial:
    """The first success of each sample, or else its best progress, when it moves until then, `steps` times at most."""
    x, best = search.image, None
    active = torch.ones(len(x), dtype=torch.bool, device=x.device)
    passes = torch.zeros(len(x), 2, dtype=torch.int64, device=x.device)
    for step in range(steps + 1):
        leaf, log_odds = search.look(x)
        candidate = search.candidate(x, log_odds)
        best = candidate if best is None else best | candidate
        passes[:, 0] += active
        active = best.harm < 1
        if step == steps or not active.any():
            break
        moved, backwards = move(leaf, log_odds)
        passes[:, 1] += active * backwards
        x = torch.where(widen(active, x), moved.detach().clamp(0, 1), x)
    assert best is not None
    return replace(best, passes=passes)
