"""Pixel counts of a truth and a prediction, from which every score follows. No torch in here."""

from typing import NamedTuple


class Overlap(NamedTuple):
    """One case and class: pixels of the truth, of the prediction and of both.

    Attributes:
        index_sums: of the slice, row and column indices of the prediction's pixels, for its centroid; the slice's is 0
            where there is no such axis.
    """

    target: int
    pred: int
    hit: int
    index_sums: tuple[int, int, int]
