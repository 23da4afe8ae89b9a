"""Notes on many scans in few sentences."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from medseg_attack.errors import plural
from medseg_attack.storage.paths import odd_kind

SHOWN = 3  # scans that a note names


def left_out(name: str, path: Path, why: str) -> str:
    """The sentence about a file that is left out: what it is, if it is no file, else why."""
    kind = odd_kind(path)
    return f"{name} is left out: {f'it is {kind}, not a file' if kind else why}"


def notes_on_scans(phrases: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """A sentence for each phrase, with the scans that it is about.

    >>> notes_on_scans({"a": ["no unit"], "b": [], "c": ["no unit"]})
    ('2 of 3 scans have no unit (a, c)',)
    """
    scans: dict[str, list[str]] = {}
    for scan, about in phrases.items():
        for phrase in about:
            scans.setdefault(phrase, []).append(scan)
    return tuple(
        f"{len(names)} of {plural(len(phrases), 'scan')} {'has' if len(names) == 1 else 'have'} {phrase} "
        f"({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for phrase, names in scans.items()
    )
