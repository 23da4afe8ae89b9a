"""The parts that an attack is made of, at any depth: looked through, and exchanged in a copy. No torch in here."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any


def mapped(thing: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a frozen dataclass, or of a tuple of such, with parts exchanged.

    Args:
        change: asked of `thing`, then of each of its parts, for what is to stand there; None: its own parts are asked.
    """
    changed = change(thing)
    if changed is not None:
        return changed
    old = _inner(thing)
    new = {name: mapped(part, change) for name, part in old.items()}
    if all(new[name] is old[name] for name in old):  # what is equal stays the same object
        return thing
    return tuple(new.values()) if isinstance(thing, tuple) else dataclasses.replace(thing, **new)


def every(thing: Any) -> Iterator[Any]:
    """A thing, then all of its parts."""
    yield thing
    for part in _inner(thing).values():
        yield from every(part)


def _inner(thing: Any) -> dict[str, Any]:
    if isinstance(thing, tuple):
        return {str(place): part for place, part in enumerate(thing)}
    if not dataclasses.is_dataclass(thing) or isinstance(thing, type):
        return {}
    return {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing) if field.init}
