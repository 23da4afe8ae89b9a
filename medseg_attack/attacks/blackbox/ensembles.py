"""Several surrogates as one model: their logits, their probabilities or their losses."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from medseg_attack.numerics.log_odds import softmax_log_odds
from medseg_attack.types import Image, LogOdds, Mask, Model, Objective, PerSample, Task


@dataclass(frozen=True)
class MeanLogits:
    """Several models as one with the mean of their logits.

    Log-probabilities are logits less what a pixel's classes share, so their mean has the softmax of the mean logits.
    """

    models: tuple[Model, ...]

    @property
    def task(self) -> Task:
        return self.models[0].task

    def __call__(self, image: Image) -> LogOdds:
        every = torch.stack([model(image) for model in self.models])
        if not self.task.exclusive:
            return every.mean(0)
        return softmax_log_odds(F.logsigmoid(every).mean(0))

    def decide(self, log_odds: LogOdds) -> Mask:
        return self.models[0].decide(log_odds)


@dataclass(frozen=True)
class MeanProbabilities(MeanLogits):
    """Several models as one with the mean of their probabilities."""

    def __call__(self, image: Image) -> LogOdds:
        every = torch.stack([model(image) for model in self.models])
        return torch.logsumexp(F.logsigmoid(every), 0) - torch.logsumexp(F.logsigmoid(-every), 0)


@dataclass(frozen=True)
class Apart(MeanLogits):
    """Several models side by side as one with n times as many classes; each decides for itself."""

    @property
    def task(self) -> Task:
        own = self.models[0].task
        return replace(own, classes=own.classes * len(self.models))

    def __call__(self, image: Image) -> LogOdds:
        return torch.cat([model(image) for model in self.models], 1)

    def decide(self, log_odds: LogOdds) -> Mask:
        parts = zip(self.models, log_odds.chunk(len(self.models), 1), strict=True)
        return torch.cat([model.decide(part) for model, part in parts], 1)


@dataclass(frozen=True)
class MeanLoss:
    """The mean of an objective over models side by side, whose truth is repeated as their classes are."""

    objective: Objective
    n: int

    def __call__(self, log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
        pairs = zip(log_odds.chunk(self.n, 1), target.chunk(self.n, 1), strict=True)
        return torch.stack([self.objective(*pair, progress) for pair in pairs]).mean(0)
