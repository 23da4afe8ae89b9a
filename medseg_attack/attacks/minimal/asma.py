"""ASMA: raises the wanted class where it is not yet predicted."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medseg_attack.attacks.minimal.priced import WIDEST
from medseg_attack.attacks.minimal.search import MinimalAttack, Search
from medseg_attack.errors import InputError, require
from medseg_attack.metrics.overlap import iou
from medseg_attack.numerics.samples import TINY, gradient_of, widen
from medseg_attack.registry import register
from medseg_attack.threat.goals.base import Goal
from medseg_attack.threat.goals.criteria import ByPixels, Criterion
from medseg_attack.threat.goals.masks import Erase
from medseg_attack.types import Adversarial, Ball, LogOdds, Mask


@register(
    "asma",
    kind="attack",
    cost="steps + 3 forward, steps backward",
    norm="least l2",
    reaches="within 1.04 of the least",
    shown_by="asma(l2(100), steps=400)",
)
@dataclass(frozen=True)
class Asma(MinimalAttack):
    """Least change that raises the wanted class where it is not predicted yet (Ozbulak et al., arXiv 1907.13124).

    What is climbed is the wanted class's logit less the square of the change. It must have a goal. Steps grow with the
    overlap that is reached. Exclusive tasks raise log-probabilities, since raw logits are known up to a constant only;
    an overlap is per case and over the classes that are there.

    Attributes:
        step_size: root mean square of a step at full overlap, on top of `least`, 0 or more; in intensities of [0, 1].
        least: root mean square of any step, 0 or more; in intensities of [0, 1].
        normalised: False multiplies raw gradients by both, as published; their scale is that of network and image.

    Raises:
        InputError: it has no goal, or a step below 0.
    """

    norms = ("l2",)

    ball: Ball = WIDEST
    goal: Goal | None = Erase()
    steps: int = 200
    step_size: float = 1 / 255
    least: float = 0.1 / 255
    normalised: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, step_size=0, least=0)
        if self.goal is None:
            raise InputError(
                "expected a goal for asma, which can only go towards one, got none; give goal=erase('liver')"
            )

    def search(self, search: Search) -> Adversarial:
        assert search.aim.goal is not None
        goal, classes = search.aim.goal(search.target), search.aim.task.scored_channels
        x = search.image
        best = search.candidate(x, search.model(x))
        for step in range(self.steps):
            leaf, log_odds = search.look(x)
            best |= search.candidate(leaf, log_odds)
            pred = search.model.decide(log_odds.detach())
            # mean over the classes in either mask; 1 where there are none
            overlap = iou(pred[:, classes], goal[:, classes], empty=math.nan).nanmean(1).nan_to_num(1.0).to(x)
            grad = gradient_of(_raised(search, log_odds, goal), leaf) - 2 * (x - search.image)
            if self.normalised:
                grad = grad / (widen(grad.flatten(1).square().mean(1).sqrt(), grad) + TINY)
            # the paper's first step knows of no overlap yet
            rate = self.least + self.step_size * (overlap if step else torch.zeros_like(overlap))
            x = (x + widen(rate, x) * grad).clamp(0, 1)
        return best | search.candidate(x, search.model(x))


def _raised(search: Search, log_odds: LogOdds, goal: Mask) -> Tensor:
    """The quantity that is raised for each entry which is not as wanted yet; 0 for the others."""
    excess = search.excess(log_odds)
    raised = torch.where(goal, functional.logsigmoid(log_odds), 0.0) if search.aim.task.exclusive else excess
    return torch.where(excess.detach() <= 0, raised, 0.0)


# its rates are for one network's logits, so that its find is bounded by the ball alone
@register(
    "asma_ozbulak2019",
    kind="attack",
    cost="steps + 3 forward, steps backward",
    norm="least l2",
    reaches="its ball",
    shown_by="asma_ozbulak2019(steps=9)",
)
def asma_ozbulak2019(
    ball: Ball = WIDEST, goal: Goal | None = Erase(), success: Criterion = ByPixels(), steps: int = 200
) -> Asma:
    """ASMA with raw gradients and the published rates, which suit one network's logits (arXiv 1907.13124)."""
    return Asma(ball, goal, success, steps, step_size=1e-6, least=1e-7, normalised=False)
