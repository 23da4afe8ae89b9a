"""How cases are cut into chunks: whole scans of one shape, in an order of their own."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from medseg_attack.runs.folder import CHUNK

if TYPE_CHECKING:  # runs import no torch
    from medseg_attack.types import CaseRef


def chunks(refs: "Sequence[CaseRef]") -> "list[tuple[CaseRef, ...]]":
    """Whole scans of one shape, at most 32 slices together unless a scan has more, in an order of the cases' own.

    Whole scans, so that what is measured in 3-D needs no other chunk: nothing is carried from one to the next, and
    resuming stays skipping.
    """
    ordered = sorted(refs, key=lambda ref: (ref.shape, ref.volume, ref.id))
    result: list[list[CaseRef]] = []
    room = 0  # slices that the last chunk has room for
    for (shape, _), group in groupby(ordered, key=lambda ref: (ref.shape, ref.volume)):
        scan = list(group)
        n_slices = sum(ref.shape[0] if len(ref.shape) == 3 else 1 for ref in scan)
        if result and result[-1][0].shape == shape and n_slices <= room:
            result[-1] += scan
            room -= n_slices
        else:
            result.append(scan)
            room = CHUNK - n_slices
    return [tuple(chunk) for chunk in result]


def in_shard(chunk: int, run: int, n_chunks: int, shard: tuple[int, int]) -> bool:
    """Whether a shard computes a chunk of a run: whole chunks are dealt out, or, where those are too few, pairs.

    The runs of a chunk share its clean predictions, so that they stay together as long as every shard has work.

    Args:
        run: number of the run in its study.
        shard: k, N.

    >>> [in_shard(chunk, run, 2, (1, 4)) for run in range(2) for chunk in range(2)]
    [False, True, False, False]
    """
    k, n = shard
    return (chunk if n_chunks >= n else chunk + n_chunks * run) % n == k
