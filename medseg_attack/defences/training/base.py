"""The hook of the training loop: a defence computes the loss of a batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from medseg_attack.models.segmodel import SegModel
from medseg_attack.types import Image, LogOdds

Criterion: TypeAlias = Callable[[LogOdds, Tensor], Tensor]  # (log-odds, 0/1 target), both (b, k, *s) -> ()


@dataclass(frozen=True, eq=False)
class Step:
    """One batch of a training, as a defence sees it.

    Attributes:
        model: the model that is trained, in training mode.
        criterion: the training loss, of log-odds and the 0/1 target.
        seeds: one per image; they follow from the training's seed, the epoch and the batch.
        progress: fraction of the training that is done, in [0, 1).
        half: whether forward passes run in bfloat16 where that is safe.
        chain: the defences behind this one, each with its `state`.
        state: tensors that this defence keeps from batch to batch; they are stored with the training.
    """

    model: SegModel
    criterion: Criterion
    seeds: Sequence[int]
    progress: float = 0.0
    half: bool = False
    chain: "tuple[tuple[TrainingDefence, dict[str, Tensor]], ...]" = ()
    state: dict[str, Tensor] = field(default_factory=dict)

    def log_odds(self, image: Image) -> LogOdds:
        """The model's answer in training mode; it feeds the statistics of batch norms."""
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=self.half):
            log_odds: LogOdds = self.model(image)
        return log_odds.float()

    def loss(self, image: Image, target: Tensor) -> Tensor:
        """The loss of the defences behind this one, and without any the criterion's."""
        if not self.chain:
            return self.criterion(self.log_odds(image), target)
        (first, state), *rest = self.chain
        return first.loss(replace(self, chain=tuple(rest), state=state), image, target)


class TrainingDefence(ABC):
    """A rule that training follows; a base of frozen dataclasses, whose fields are its options.

    Attributes:
        replays: optimiser steps that each batch is used for.
    """

    replays: int = 1

    @abstractmethod
    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        """The loss of a batch, whose gradient by the weights the optimiser follows.

        Args:
            target: 0/1 masks as floats, (b, k, *s).
        """

    def check(self, model: SegModel) -> None:  # noqa: B027 - most fit every model
        """Refuses a model that the defence does not fit.

        Raises:
            InputError: the model lacks what the defence needs.
        """
