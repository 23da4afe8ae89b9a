"""Some cases of many, chosen by their names alone: the same on every machine, in every order."""

import math
from collections.abc import Sequence
from itertools import islice
from zlib import crc32

from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.errors import InputError
from medseg_attack.types import Case, CaseRef


def limit(refs: Sequence[CaseRef], limit: float | None, *, whole_scans: bool = False) -> list[CaseRef]:
    """So many of the cases, or such a share of them if the limit is below 1; all without a limit.

    Args:
        whole_scans: whether all slices of a scan are taken; then so many scans that the limit is reached.

    Raises:
        InputError: the limit is neither a whole number of cases nor a share below 1.
    """
    if limit is None:
        return list(refs)
    if not 0 < limit < math.inf or (limit > 1 and not float(limit).is_integer()):
        raise InputError(f"expected --limit as a whole number of cases or a share below 1, got {limit:g}; write 10")
    n = int(limit) if limit >= 1 else max(1, round(limit * len(refs)))
    shuffled = _shuffled(refs)
    if not whole_scans:
        return shuffled[:n]
    by_scan: dict[str, list[CaseRef]] = {}
    for ref in shuffled:
        by_scan.setdefault(ref.volume, []).append(ref)
    result: list[CaseRef] = []
    for scan in by_scan.values():
        if len(result) < n:
            result += scan
    return result


def informative(data: Prepared, refs: Sequence[CaseRef]) -> list[Case]:
    """2 to 4 cases of one shape, 2 % of all between, that have organs where such are soon found."""
    n = min(4, max(2, round(0.02 * len(refs))))
    scored = list(data.task.scored)
    some = _shuffled(refs)[:64]
    alike = [ref for ref in some if ref.shape == some[0].shape]
    read = (data.read(ref) for ref in alike)
    chosen = list(islice((case for case in read if case.target[scored].any()), n))  # one at a time: scans are large
    return chosen or [data.read(ref) for ref in alike[:n]]


def _shuffled(refs: Sequence[CaseRef]) -> list[CaseRef]:
    return sorted(refs, key=lambda ref: crc32(ref.id.encode()))
