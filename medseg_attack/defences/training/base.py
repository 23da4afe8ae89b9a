"""The hook of the training loop: a defence computes the loss of a batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from medseg_attack.attacks.judging import truth_after
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.registry import spec
from medseg_attack.registry.foreign import at_fault, is_foreign, lent, part_name, words_of
from medseg_attack.registry.parts import walk
from medseg_attack.runs.rows import Knowledge
from medseg_attack.threat.binding import bind
from medseg_attack.types import Attack, Fittable, Image, LogOdds, Setting

Criterion: TypeAlias = Callable[[LogOdds, Tensor], Tensor]  # (log-odds, 0/1 target), both (b, k, *s) -> ()


@dataclass(frozen=True, eq=False)
class Step:
    """One batch of a training, as a defence sees it.

    Attributes:
        model: the model that is trained, in training mode.
        criterion: the training loss, of log-odds and the 0/1 target.
        seeds: one per image; they follow from the training's seed, the epoch and the batch.
        progress: fraction of the training that is done, in [0, 1).
        half: whether forward passes run in bfloat16 where that is safe; attacks never do.
        chain: the defences behind this one, each with its `state`.
        places: the numbers of the images' cases among all training cases.
        unlabelled: draws as many scans of the patients that a defence names as `unlabelled`.
        state: tensors that this defence keeps from batch to batch; they are stored with the training.
    """

    model: SegModel
    criterion: Criterion
    seeds: Sequence[int]
    progress: float = 0.0
    half: bool = False
    chain: "tuple[tuple[TrainingDefence, dict[str, Tensor]], ...]" = ()
    state: dict[str, Tensor] = field(default_factory=dict)
    places: Sequence[int] = (0,)
    unlabelled: Callable[[], Image] | None = None

    def log_odds(self, image: Image) -> LogOdds:
        """The model's answer in training mode; it feeds the statistics of batch norms."""
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=self.half):
            log_odds: LogOdds = self.model(image)
        return log_odds.float()

    def loss(self, image: Image, target: Tensor) -> Tensor:
        """The loss of the defences behind this one; without any, the criterion's."""
        if not self.chain:
            return self.criterion(self.log_odds(image), target)
        (first, state), *rest = self.chain
        loss = first.loss(replace(self, chain=tuple(rest), state=state), lent(first, image), lent(first, target))
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            got = words_of(loss)
            raise at_fault(
                first,
                f"expected one number with a gradient by the weights as the loss of {part_name(first)}, got "
                f"{f'{got} without one' if isinstance(loss, Tensor) and loss.numel() == 1 else got}; average over the "
                "batch, and let no detach() and no_grad() stand between the loss and the weights",
            )
        if is_foreign(first) and not bool(loss.isfinite()) and self._is_finite(image, target):
            value = float(loss.detach())
            raise InputError(
                f"expected a finite loss from {part_name(first)}, as the training loss is, got {value}; repair it"
            )
        return loss.reshape(())

    def _is_finite(self, image: Image, target: Tensor) -> bool:
        """Whether the criterion of the model's answer is finite."""
        with torch.no_grad():
            return bool(self.criterion(self.log_odds(image), target).isfinite())

    def attacked(self, attack: Attack, image: Image, target: Tensor) -> tuple[Image, Tensor]:
        """The images after an attack, and the target, which moves with the anatomy.

        The attack sees the model in eval mode: it neither feeds the statistics of batch norms nor drops out anything.
        """
        setting, mask = Setting(self.model.task, stream=f"attack {self.seeds[0]}"), target > 0.5
        with frozen(self.model) as model:
            result = bind(attack, setting)(bind(model, setting), image.detach(), mask, self.seeds)
        return result.image.detach(), truth_after(result, mask, model.task.exclusive).to(target)


class TrainingDefence(ABC):
    """A rule that training follows; a base of frozen dataclasses, whose fields are its options.

    Attributes:
        replays: optimiser steps that each batch is used for, at the beginning.
        unlabelled: k/N, a part of the patients of which scans without masks are needed; "" for none.
        by_parts: whether the loss of a batch is the criterion's of images that are changed one by one, so that several
            processes can each take a part of the batch.
        monitor: an attack on the validation patients after each epoch, whose Dice `alarm` looks at; None for none.
    """

    replays: int = 1
    unlabelled: str = ""
    by_parts: bool = False
    monitor: Attack | None = None

    @abstractmethod
    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        """The loss of a batch, whose gradient by the weights the optimiser follows.

        Args:
            target: 0/1 masks as floats, (b, k, *s).
        """

    def prepare(self, model: SegModel) -> None:  # noqa: B027 - most leave the model as it is
        """Refuses a model that the defence does not fit, and changes the layers of one that it does.

        Raises:
            InputError: the model lacks what the defence needs.
        """

    def knowledge(self, before: "Sequence[TrainingDefence]") -> Knowledge:
        """Whether a backdoor that was trained by the rules `before` knows this one; "" of what repairs no backdoor."""
        return ""

    def architecture(self, model: str) -> str:
        """The spec that the trained model is built from, of the one that training began with."""
        return model

    def replays_now(self, state: dict[str, Tensor]) -> int:
        """The optimiser steps that each batch of the coming epoch is used for.

        Args:
            state: what the defence keeps from batch to batch.
        """
        return self.replays

    def end_epoch(self, epoch: int, state: dict[str, Tensor]) -> None:  # noqa: B027 - most keep their state
        """Changes what the defence keeps, after the last batch of an epoch, counted from 1."""

    def alarm(self, robust: Sequence[float], monitored: Sequence[float]) -> str:
        """The reason to stop the training; "" for none.

        Args:
            robust: mean validation Dice of each epoch under the attack that chooses the best one.
            monitored: the same under `monitor`.
        """
        return ""


def require_ready(attack: Any, defence: str) -> None:
    """Refuses an inner attack that must be fitted first."""
    for part in walk(attack):
        if isinstance(part, Fittable):
            raise InputError(
                f"expected an attack that needs no fit for {defence}, got {spec(part)}, which learns from other "
                "images first; take the defence shared, or another attack"
            )
