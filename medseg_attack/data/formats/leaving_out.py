"""Scans that the user leaves out, such as one that cannot be read and would end the preparation of all: --leave-out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from medseg_attack.errors import InputError, listed, nearest
from medseg_attack.escaping import shell, whole_characters

FLAG = "--leave-out"


@dataclass(frozen=True)
class _Asked:
    """Names to leave out, and all names that were asked about."""

    names: Sequence[str]
    known: set[str] = field(default_factory=set)

    def hits(self, asked: str) -> list[str]:
        return sorted(name for name in self.known if _is(name, asked))


_chosen: ContextVar[_Asked | None] = ContextVar("left out", default=None)


@contextmanager
def leaving_out(names: Sequence[str]) -> Iterator[None]:
    """A scope in which scans of these names are passed over.

    Args:
        names: of scans, as `offering` says them, or patterns of such, as `liver_1*`.
    """
    token = _chosen.set(_Asked(names))
    try:
        yield
    finally:
        _chosen.reset(token)


def refuse_unknown() -> None:
    """Refuses names that no scan has, once `is_left_out` was asked about every scan and before any is read.

    Raises:
        InputError: there was no scan of a name that is to be left out.
    """
    asked = _chosen.get() or _Asked(())
    for name in asked.names:
        if not asked.hits(name):
            known = nearest(name, asked.known)
            raise InputError(f"{FLAG}: expected the name of a scan, or a pattern of such, got {name!r}; {known}")


def is_left_out(name: str) -> bool:
    """Whether the scan, or file, of that name is to be left out."""
    asked = _chosen.get()
    if asked is None:
        return False
    asked.known.add(name)
    return any(_is(name, one) for one in asked.names)


@contextmanager
def offering(name: str) -> Iterator[None]:
    """A scope about one scan, or file: its refusals say how to go on without it.

    Args:
        name: what `is_left_out` is asked about.
    """
    try:
        yield
    except InputError as error:
        sentence, *lines = error.args
        if FLAG in str(error):
            raise
        ending = f"{sentence}; {FLAG} {shell(name)} goes on without it"
        raise type(error)(ending, *lines) from error.__cause__


def left_out_notes() -> list[str]:
    """A sentence on each name or pattern that left something out."""
    asked = _chosen.get()
    hits = {name: asked.hits(name) for name in asked.names} if asked else {}
    return [f"{FLAG} {shell(name)} leaves out {listed(names)}" for name, names in hits.items() if names]


def _is(name: str, asked: str) -> bool:
    return any(each == asked or fnmatchcase(each, asked) for each in (name, whole_characters(name)))
