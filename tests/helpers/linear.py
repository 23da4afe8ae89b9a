"""A model of several channels and classes that is linear in each pixel."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from medseg_attack.numerics.log_odds import softmax_log_odds
from medseg_attack.types import Image, LogOdds, Mask, Task


@dataclass(frozen=True)
class Linear:
    """Each pixel's logits are its channels times a matrix, less what its classes lack at 0.5."""

    slopes: tuple[tuple[float, ...], ...]
    lacks: tuple[float, ...]
    exclusive: bool = True
    averaged: bool = False

    @property
    def task(self) -> Task:
        names = ("background", "b", "c", "d")[: len(self.lacks)]
        return Task("linear", names, exclusive=self.exclusive, channels=len(self.slopes[0]))

    def __call__(self, image: Image) -> LogOdds:
        slopes, lacks = (torch.tensor(part, dtype=image.dtype) for part in (self.slopes, self.lacks))
        logits = torch.einsum("kc,bchw->bkhw", slopes, image - 0.5) - lacks.view(-1, 1, 1)
        if self.averaged:
            logits = logits.mean((2, 3), keepdim=True).expand_as(logits)
        return softmax_log_odds(logits) if self.exclusive else logits

    def decide(self, log_odds: LogOdds) -> Mask:
        if not self.exclusive:
            return log_odds > 0
        return functional.one_hot(log_odds.argmax(1), log_odds.shape[1]).bool().movedim(-1, 1)
