"""Parts that an attack is made of, at any depth: walked through, and exchanged in a copy. Imports no torch."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from medseg_attack.registry.specs import build
from medseg_attack.registry.table import entry_of, kind_of, options_of


def replace_parts(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a frozen dataclass, or of a tuple of such, with parts exchanged.

    Args:
        change: gives the replacement of `value`, then of each of its parts; None keeps a part and goes on to its own.
    """
    changed = change(value)
    return replace_inner(value, change) if changed is None else changed


def replace_inner(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a value in which `replace_parts` was applied to its parts, but not to itself."""
    old = inner_parts(value)
    new = {name: replace_parts(part, change) for name, part in old.items()}
    if all(new[name] is old[name] for name in old):  # equal copies stay the same object
        return value
    return tuple(new.values()) if isinstance(value, tuple) else dataclasses.replace(value, **new)


def walk(value: Any) -> Iterator[Any]:
    """Yields a value, then all of its parts, at any depth."""
    yield value
    for part in inner_parts(value).values():
        yield from walk(part)


def inner_parts(value: Any) -> dict[str, Any]:
    """The parts of a dataclass by field, or of a tuple by place; {} of anything else."""
    if isinstance(value, tuple):
        return {str(place): part for place, part in enumerate(value)}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {}
    return options_of(value)


def with_eps(value: Any, eps: float) -> Any:
    """A copy of an attack (or a ball, or a tuple of them) with that budget, however deep its balls sit."""

    def change(part: Any) -> Any:
        entry = entry_of(part)
        if entry is None or entry.kind == "attack":
            return None
        if entry.kind == "ball" and entry.takes("eps"):
            return dataclasses.replace(part, eps=eps)
        return None if entry.kind == "ball" else part  # a ball that wraps another has its eps from there

    return replace_parts(value, change)


def within(value: Any, region: str) -> Any:
    """A copy of an attack (or of a tuple of them) whose every ball is held to a region of the image."""
    region_ball = build("within", "ball")
    return replace_parts(
        value,
        lambda part: dataclasses.replace(region_ball, ball=part, region=region) if kind_of(part) == "ball" else None,
    )
