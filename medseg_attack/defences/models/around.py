"""The base of models around models: their members, their task, and what an attacker must know of them."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from torch import nn

from medseg_attack.errors import InputError
from medseg_attack.models.checkpoints import load
from medseg_attack.models.draws import Draws
from medseg_attack.models.segmodel import SegModel
from medseg_attack.models.sliding_window import is_rehearsed
from medseg_attack.registry import shown
from medseg_attack.types import Backward, Image, LogOdds, Setting, Task

Reference: TypeAlias = str | Callable[..., SegModel]  # folder of a checkpoint, or a model that waits for its task
A = TypeVar("A", bound="AroundModels")
FEW = 16  # answers about an image of which a rehearsal learns what more of them take


class AroundModels(nn.Module, ABC):
    """A network that is made of models: images in, log-odds out.

    Attributes:
        members: the models.
        draws: seeds of what it draws at random.
        backward: gradient of its layers: see `Setting`.
    """

    def __init__(self, members: Sequence[SegModel]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.draws = Draws()
        self.backward: Backward = "own"

    @abstractmethod
    def forward(self, image: Image) -> LogOdds:
        """The log-odds, as one model."""

    @property
    def models(self) -> list[SegModel]:
        return [model for model in self.members if isinstance(model, SegModel)]

    @property
    def is_random(self) -> bool:
        return any(model.is_random for model in self.models)

    @property
    def blocks_gradient(self) -> bool:
        return any(model.blocks_gradient for model in self.models)

    @property
    def passes(self) -> int:
        return sum(model.passes for model in self.models)

    def bind(self: A, setting: Setting) -> A:
        """A copy in that setting, with the same weights; each member draws numbers of its own."""
        bound = copy.copy(self)
        streams = (replace(setting, stream=f"{setting.stream}/{i}") for i in range(len(self.members)))
        members = [model.bind(inner) for model, inner in zip(self.models, streams, strict=True)]
        bound._modules = {**self._modules, "members": nn.ModuleList(members)}
        bound.draws, bound.backward = self.draws.bound(setting), setting.backward
        return bound


class NoisyModel(AroundModels):
    """A model that is asked several times about an image, with other noise each time."""

    def __init__(self, base: SegModel, sigma: float, n: int) -> None:
        super().__init__([base])
        self.sigma, self._n = sigma, n

    @property
    def n(self) -> int:
        """How often the model is asked about an image; in a rehearsal `FEW` times at most."""
        return min(self._n, FEW) if is_rehearsed() else self._n

    @property
    def is_random(self) -> bool:
        return super().is_random or self.sigma > 0

    @property
    def passes(self) -> int:
        return self.n * super().passes


def as_model(around: AroundModels) -> SegModel:
    """The models as one.

    Raises:
        InputError: they are of several tasks, or some take slices and others scans.
    """
    first, *others = around.models
    for other in others:
        if (other.task.classes, other.task.exclusive, other.dims) != (
            first.task.classes,
            first.task.exclusive,
            first.dims,
        ):
            raise InputError(
                f"expected members of one task, all of {first.dims}-D cases, got {first.task.classes} in "
                f"{first.dims}-D and {other.task.classes} in {other.dims}-D; take others"
            )
    return SegModel(
        around,
        first.task,
        head="log-odds",
        in_channels=max(model.in_channels for model in around.models),
        dims=first.dims,
        black_box=any(model.black_box for model in around.models),
    )


def member(reference: Any, task: Task, place: str) -> SegModel:
    """The model of a reference.

    Args:
        place: name of the model around it, for the sentence of a refusal.

    Raises:
        InputError: it is no trained model, or it gets prompts.
    """
    is_name = isinstance(reference, str) and reference
    model = load(Path(reference), task) if is_name else reference(task) if callable(reference) else None
    if isinstance(model, SegModel):
        if model.prompt:
            raise InputError(
                f"expected a model without prompts for {place}, got one with a {model.prompt}; attack that model itself"
            )
        return model
    got = "nothing" if reference in (None, "", ()) else shown(reference)
    raise InputError(
        f"expected a trained model for {place}, got {got}; write the name or folder of a checkpoint in quotes, or a "
        "spec that brings its weights, such as nnunet('RESULTS')"
    )


def members(references: Sequence[Any], task: Task, place: str) -> list[SegModel]:
    """The models of references, at least one.

    Raises:
        InputError: there is none, or one is no trained model.
    """
    return [member(reference, task, place) for reference in references or (None,)]
