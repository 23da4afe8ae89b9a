"""Parts that an attack is made of, at any depth: walked through, and exchanged in a copy. Imports no torch."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from medseg_attack.registry.specs import build
from medseg_attack.registry.table import entry_of, kind_of, options_of


def replace_parts(thing: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a frozen dataclass, or of a tuple of such, with parts exchanged.

    Args:
        change: gives the replacement of `thing`, then of each of its parts; None keeps a part and goes on to its own.
    """
    changed = change(thing)
    return replace_inner(thing, change) if changed is None else changed


def replace_inner(thing: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a thing in which `replace_parts` was applied to its parts, but not to itself."""
    old = inner_parts(thing)
    new = {name: replace_parts(part, change) for name, part in old.items()}
    if all(new[name] is old[name] for name in old):  # equal copies stay the same object
        return thing
    return tuple(new.values()) if isinstance(thing, tuple) else dataclasses.replace(thing, **new)


def walk(thing: Any) -> Iterator[Any]:
    """Yields a thing, then all of its parts, at any depth."""
    yield thing
    for part in inner_parts(thing).values():
        yield from walk(part)


def inner_parts(thing: Any) -> dict[str, Any]:
    """The parts of a dataclass by field, or of a tuple by place; {} of anything else."""
    if isinstance(thing, tuple):
        return {str(place): part for place, part in enumerate(thing)}
    if not dataclasses.is_dataclass(thing) or isinstance(thing, type):
        return {}
    return options_of(thing)


def with_eps(thing: Any, eps: float) -> Any:
    """A copy of an attack (or a ball, or a tuple of them) with that budget, however deep its balls sit."""

    def change(part: Any) -> Any:
        entry = entry_of(part)
        if entry is None or entry.kind == "attack":
            return None
        if entry.kind == "ball" and entry.takes("eps"):
            return dataclasses.replace(part, eps=eps)
        return None if entry.kind == "ball" else part  # a ball that wraps another has its eps from there

    return replace_parts(thing, change)


def within(thing: Any, region: str) -> Any:
    """A copy of an attack (or of a tuple of them) whose every ball is held to a region of the image."""
    region_ball = build("within", "ball")
    return replace_parts(
        thing,
        lambda part: dataclasses.replace(region_ball, ball=part, region=region) if kind_of(part) == "ball" else None,
    )
