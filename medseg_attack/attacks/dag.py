"""Attacks that take steps of a stated size until they crossed the boundary: DAG, JSMA."""

from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.attacks.minimal import Least, Moved, Search, check, slope, walk, wide
from medseg_attack.balls import L0, TINY, Linf
from medseg_attack.criteria import ByPixels, Criterion
from medseg_attack.errors import InputError
from medseg_attack.goals import Goal
from medseg_attack.registry import About, register
from medseg_attack.types import Adversarial, Ball, Image, LogOdds

WIDEST = Linf(64 / 255)


@register("dag", kind="attack")
@dataclass(frozen=True)
class Dag(Least):
    """Small steps against the entries that are not adversarial yet (DAG; Xie et al., ICCV 2017, arXiv 1703.08603).

    The gradient of their summed margins, divided by its largest entry, is added until the case succeeds; so the change
    is at most a step larger than needed. Kept within [0, 1] in every step, which the paper's code does not; a case
    that fails is a failure and not a clean success. Against any norm: the step is of Linf.

    Attributes:
        step_size: gamma; the paper's 0.5 grey levels of 255 is 0.002.
    """

    ball: Ball = WIDEST
    goal: Goal | None = None
    success: Criterion = ByPixels()
    steps: int = 200
    step_size: float = 0.001

    def __post_init__(self) -> None:
        check(self, "linf", "l2", "l0")
        if not self.step_size > 0:
            raise InputError(f"expected step_size > 0, got {self.step_size:g}; check the attack")

    def search(self, found: Search) -> tuple[Adversarial, Tensor]:
        def move(x: Image, log_odds: LogOdds) -> Moved:
            grad = slope(found.excess(log_odds).clamp(max=0), x)
            return x + self.step_size * grad / (wide(grad.abs().flatten(1).amax(1), grad) + TINY), 1

        return walk(found, self.steps, move)


@register("jsma", kind="attack", about=About(norm="least l0"))
@dataclass(frozen=True)
class Jsma(Least):
    """The few pixels that matter most, changed as far as they go (JSMA; Papernot et al., arXiv 1511.07528).

    Saliency is the slope of the wanted class's margin over the best other, summed over the entries that are not
    adversarial yet. The paper's product, of what a pixel does for the wanted logit and against the sum of all others,
    depends on the logits' common shift, which log-odds do not know; of log-probabilities it is 0 wherever a pixel moves
    both alike, and the search gets stuck. Single pixels, not pairs, which a scan has too many of.

    Attributes:
        steps: rounds, of which each changes `share` of all pixels; none is changed twice.
        theta: by how much; 1 goes to black or white.
    """

    ball: Ball = L0()
    goal: Goal | None = None
    success: Criterion = ByPixels()
    steps: int = 100
    share: float = 0.001
    theta: float = 1.0

    def __post_init__(self) -> None:
        check(self, "l0")
        if not (0 < self.share <= 1 and self.theta > 0):
            raise InputError(
                f"expected 0 < share <= 1 and theta > 0, got {self.share:g} and {self.theta:g}; check them"
            )

    def search(self, found: Search) -> tuple[Adversarial, Tensor]:
        n = max(1, round(self.share * found.image[0].numel()))

        def move(x: Image, log_odds: LogOdds) -> Moved:
            gain = slope(found.excess(log_odds).clamp(max=0), x)
            moved = (x.detach() + self.theta * gain.sign()).clamp(0, 1)
            stuck = (x.detach() != found.image) | (moved == x.detach())
            score = torch.where(stuck, 0.0, gain.abs()).flatten(1)
            top = score.topk(n, 1)
            chosen = torch.zeros_like(score, dtype=torch.bool).scatter_(1, top.indices, top.values > 0)
            return torch.where(chosen.view_as(x), moved, x.detach()), 1

        return walk(found, self.steps, move)
