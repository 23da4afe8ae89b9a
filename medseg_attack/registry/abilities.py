"""Abilities of attacks and of their parts, asked for with `isinstance`. Imports no torch."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Climbs(Protocol):
    """An attack that climbs an objective, or an objective that is made of another."""

    objective: Callable[..., Any]


@runtime_checkable
class ClimbsInSteps(Climbs, Protocol):
    """An attack that climbs an objective in a number of steps."""

    ball: Any
    steps: int


@runtime_checkable
class ClimbsFeatures(Protocol):
    """An attack that may climb hidden features of the image."""

    @property
    def features_alone(self) -> bool:
        """Whether it climbs them and nothing else: what a model makes of them has no part in its gradient."""
        ...


@runtime_checkable
class Aimed(Protocol):
    """An attack or an objective with a goal (None: anything but the truth) and a criterion of success."""

    goal: Any
    success: Any


@runtime_checkable
class Composed(Protocol):
    """An attack that is made of others, of which the first says what its control is."""

    attacks: tuple[Any, ...]


@runtime_checkable
class Several(Protocol):
    """An attack that stands for several in a study, each with runs of its own."""

    def members(self) -> tuple[Any, ...]:
        """The attacks that it stands for; itself alone if it is one of them."""
        ...


@runtime_checkable
class Controlled(Protocol):
    """An attack whose control is a random change of its own kind, and not noise in its ball."""

    def control(self) -> Any:
        """The attack that makes such a change."""
        ...
