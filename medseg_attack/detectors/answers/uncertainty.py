"""How unsure the model is of its own mask: entropy, margin and variation ratio (Maag & Fischer)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from medseg_attack.detectors.base import Detector, as_double
from medseg_attack.registry import register
from medseg_attack.types import Case, Image, LogOdds, Model, PerSample, Task

PAPER = "Maag & Fischer, arXiv 2305.12825"


@dataclass(frozen=True)
class Uncertainty(Detector):
    """The mean over pixels of a number that is large where the model is unsure."""

    reason: ClassVar[str] = "an answer that is less sure than on clean scans"

    def observe(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, Float[Tensor, "b d"]]:
        log_odds = model(image)
        return log_odds, as_double(self.doubt(log_odds, model.task)).flatten(1).mean(1, keepdim=True)

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        return statistics[:, 0]

    def doubt(self, log_odds: LogOdds, task: Task) -> Tensor:
        """The number of each pixel, or of each pixel and class where classes may overlap."""
        raise NotImplementedError


@register("entropy", kind="detector", paper=PAPER, cost="1 forward")
@dataclass(frozen=True)
class Entropy(Uncertainty):
    """The mean entropy of a pixel's probabilities, in nats (Maag & Fischer, arXiv 2305.12825).

    Where classes may overlap it is the mean over classes of the entropy of yes or no. An attacker who makes the model
    sure of a wrong mask lowers it.
    """

    def doubt(self, log_odds: LogOdds, task: Task) -> Tensor:
        p = log_odds.sigmoid()
        each = -p * logsigmoid(log_odds)
        return each.sum(1) if task.exclusive else each - (1 - p) * logsigmoid(-log_odds)


@register("probability_margin", kind="detector", paper=PAPER, cost="1 forward")
@dataclass(frozen=True)
class Margin(Uncertainty):
    """One minus the mean distance of a pixel's two largest probabilities (Maag & Fischer, arXiv 2305.12825).

    Where classes may overlap, the two are yes and no.
    """

    def doubt(self, log_odds: LogOdds, task: Task) -> Tensor:
        p = log_odds.sigmoid()
        if not task.exclusive:
            return 1 - (2 * p - 1).abs()
        first, second = p.topk(2, 1).values.unbind(1)
        return 1 - (first - second)


@register("variation_ratio", kind="detector", paper=PAPER, cost="1 forward")
@dataclass(frozen=True)
class VariationRatio(Uncertainty):
    """One minus the mean of a pixel's largest probability (Maag & Fischer, arXiv 2305.12825).

    Where classes may overlap, it is that of yes or no.
    """

    def doubt(self, log_odds: LogOdds, task: Task) -> Tensor:
        p = log_odds.sigmoid()
        return 1 - (p.amax(1) if task.exclusive else torch.maximum(p, 1 - p))
