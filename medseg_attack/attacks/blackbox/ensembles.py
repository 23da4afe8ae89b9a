"""Several models as one: the mean of their logits, of their probabilities or of their losses."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from medseg_attack.numerics.log_odds import softmax_log_odds
from medseg_attack.types import Image, LogOdds, Mask, Model, Objective, PerSample, Task


@dataclass(frozen=True)
class MeanLogits:
    """Several models as one: its logits are the mean of theirs (Dong et al., arXiv 1710.06081).

    Log-probabilities are logits less a number that a pixel's classes share, so the mean of log-probabilities has the
    softmax of the mean logits.

    Attributes:
        models: models of one task.
    """

    models: tuple[Model, ...]

    @property
    def task(self) -> Task:
        return self.models[0].task

    def __call__(self, image: Image) -> LogOdds:
        stacked = torch.stack([model(image) for model in self.models])
        if not self.task.exclusive:
            return stacked.mean(0)
        return softmax_log_odds(F.logsigmoid(stacked).mean(0))

    def decide(self, log_odds: LogOdds) -> Mask:
        return self.models[0].decide(log_odds)


@dataclass(frozen=True)
class MeanProbabilities(MeanLogits):
    """Several models as one: its probabilities are the mean of theirs (Liu et al., arXiv 1611.02770)."""

    def __call__(self, image: Image) -> LogOdds:
        stacked = torch.stack([model(image) for model in self.models])
        return torch.logsumexp(F.logsigmoid(stacked), 0) - torch.logsumexp(F.logsigmoid(-stacked), 0)


@dataclass(frozen=True)
class Apart(MeanLogits):
    """Several models as one with the classes of all of them; each decides for itself."""

    @property
    def task(self) -> Task:
        task = self.models[0].task
        return replace(task, classes=task.classes * len(self.models))

    def __call__(self, image: Image) -> LogOdds:
        return torch.cat([model(image) for model in self.models], 1)

    def decide(self, log_odds: LogOdds) -> Mask:
        parts = zip(self.models, log_odds.chunk(len(self.models), 1), strict=True)
        return torch.cat([model.decide(part) for model, part in parts], 1)


@dataclass(frozen=True)
class MeanLoss:
    """The mean of an objective over the models of `Apart`; the truth is repeated as the classes are.

    Attributes:
        n: number of models.
    """

    objective: Objective
    n: int

    def __call__(self, log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
        pairs = zip(log_odds.chunk(self.n, 1), target.chunk(self.n, 1), strict=True)
        return torch.stack([self.objective(*pair, progress) for pair in pairs]).mean(0)
