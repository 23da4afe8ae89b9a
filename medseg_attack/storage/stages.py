"""The stage that long work is at, such as checks before an attack, told to whoever shows its progress."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[str], object] | None] = ContextVar("listener", default=None)


@contextmanager
def listening(tell: Callable[[str], object]) -> Iterator[None]:
    """A scope in which the name of each stage is told as it begins."""
    token = _listener.set(tell)
    try:
        yield
    finally:
        _listener.reset(token)


def begin_stage(name: str) -> None:
    """Tells that a stage begins, which lasts until the next one, or until something is finished."""
    tell = _listener.get()
    if tell is not None:
        tell(name)
