"""How cases are cut into chunks: whole scans of one shape, in an order of their own."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

from medseg_attack.runs.folder import CHUNK


@runtime_checkable
class Ref(Protocol):
    """A case that has not been read yet."""

    @property
    def id(self) -> str: ...
    @property
    def volume(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def chunks(refs: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Whole scans of one shape, at most 32 slices together unless a scan has more, in an order of the cases' own.

    Whole scans, so that what is measured in 3-D needs no other chunk: nothing is carried from one to the next, and
    resuming stays skipping.
    """
    ordered = sorted(refs, key=lambda ref: (ref.shape, ref.volume, ref.id))
    made: list[tuple[Any, ...]] = []
    for (shape, _), group in groupby(ordered, key=lambda ref: (ref.shape, ref.volume)):
        scan = tuple(group)
        if made and made[-1][0].shape == shape and _slices(made[-1]) + _slices(scan) <= CHUNK:
            made[-1] += scan
        else:
            made.append(scan)
    return made


def _slices(refs: Sequence[Ref]) -> int:
    return sum(ref.shape[0] if len(ref.shape) == 3 else 1 for ref in refs)
