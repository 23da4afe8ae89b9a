"""Which native intensities a slice shows as 0 and 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from medseg_attack.errors import InputError

Slices: TypeAlias = Sequence[NDArray[Any]] | NDArray[Any]


@runtime_checkable
class WindowRule(Protocol):
    """A rule that maps a scan's intensities, slices of (rows, columns), to low and high of each slice: (slices, 2).

    Slices are computed when they are asked for, so that a volume is never in memory as float64. NaN stands for pixels
    that were never measured. `str(rule)` is the text that `window_rule` turns into it.
    """

    def __call__(self, slices: Slices) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class Percentile:
    """One window for the scan: its 0.5 and 99.5 percentile, or its range if these two are equal."""

    def __call__(self, slices: Slices) -> NDArray[np.float64]:
        low, high = percentiles(slices, (0.5, 99.5))
        if not low < high:
            low, high = ends(slices)
        return np.tile(np.array([low, high], dtype=np.float64), (len(slices), 1))

    def __str__(self) -> str:
        return "percentile"


@dataclass(frozen=True)
class Range:
    """One window for the scan: from its least to its greatest measured value, so that nothing of them is cut off.

    What the file calls padding is no measurement.
    """

    def __call__(self, slices: Slices) -> NDArray[np.float64]:
        return np.tile(np.array(ends(slices), dtype=np.float64), (len(slices), 1))

    def __str__(self) -> str:
        return "range"


@dataclass(frozen=True)
class SliceMax:
    """Each slice from 0 to its maximum, as in arXiv 2401.11224; 0 to 1 where that is not positive."""

    def __call__(self, slices: Slices) -> NDArray[np.float64]:
        high = np.array([np.fmax.reduce(values, axis=None) for values in slices], dtype=np.float64)
        return np.stack((np.zeros_like(high), np.where(high > 0, high, 1.0)), axis=1)

    def __str__(self) -> str:
        return "slice_max"


@dataclass(frozen=True)
class Fixed:
    """The same window everywhere, in the scan's unit; for CT in HU."""

    low: float
    high: float

    def __call__(self, slices: Slices) -> NDArray[np.float64]:
        return np.tile(np.array([self.low, self.high], dtype=np.float64), (len(slices), 1))

    def __str__(self) -> str:
        return f"{self.low},{self.high}"


def ends(slices: Slices) -> tuple[float, float]:
    """The least and the largest measured value."""
    pairs = [(np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)) for values in slices]
    return float(np.nanmin([low for low, _ in pairs])), float(np.nanmax([high for _, high in pairs]))


def percentiles(slices: Slices, percents: Sequence[float]) -> list[float]:
    """The percentiles of all measured values, bit for bit as `np.percentile` has them, without a copy of the values.

    The upper 16 bits of all values are counted first. Only those values that share them with a neighbour of a
    percentile are then looked at.
    """
    n_upper = np.zeros(2**16, np.int64)
    for values in slices:
        n_upper += np.bincount(_upper_bits(_measured(values)), minlength=2**16)
    up_to = n_upper.cumsum()
    places = [percent / 100 * (int(up_to[-1]) - 1) for percent in percents]
    ranks = sorted({int(rank) for place in places for rank in (np.floor(place), np.ceil(place))})
    chosen = np.unique(np.searchsorted(up_to, ranks, side="right"))
    is_chosen = np.zeros(2**16, bool)
    is_chosen[chosen] = True
    distinct = [
        np.unique(measured[is_chosen[_upper_bits(measured)]], return_counts=True) for measured in map(_measured, slices)
    ]
    numbers, first = np.unique(np.concatenate([values for values, _ in distinct]), return_inverse=True)
    counts = np.bincount(first, weights=np.concatenate([n for _, n in distinct])).astype(np.int64)
    n_below = np.concatenate(
        [up_to[bits] - n_upper[bits] + _before(counts[_upper_bits(numbers) == bits]) for bits in chosen]
    )
    at_rank = {rank: numbers[np.searchsorted(n_below, rank, side="right") - 1] for rank in ranks}
    return [
        float(np.quantile([at_rank[int(np.floor(place))], at_rank[int(np.ceil(place))]], place - np.floor(place)))
        for place in places
    ]


def _before(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of what comes before each."""
    return counts.cumsum() - counts


def _measured(values: NDArray[Any]) -> NDArray[np.float64]:
    missing = np.isnan(values)
    return np.asarray(values[~missing] if missing.any() else values.reshape(-1), np.float64)


def _upper_bits(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The upper 16 of bits that are in the order of the values."""
    bits = (values + 0.0).view(np.int64)  # -0.0 is 0.0
    ordered = np.where(bits < 0, ~bits, bits | np.int64(-(2**63))).view(np.uint64)
    return (ordered >> np.uint64(48)).astype(np.int64)


def window_rule(text: str) -> WindowRule:
    """The rule that is written `percentile`, `range`, `slice_max` or `LOW,HIGH`.

    >>> window_rule("-160,240")
    Fixed(low=-160.0, high=240.0)

    Raises:
        InputError: it is none of these, or LOW is not below HIGH.
    """
    named: dict[str, WindowRule] = {str(rule): rule for rule in (Percentile(), Range(), SliceMax())}
    if text in named:
        return named[text]
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = float("nan")
    if not -np.inf < low < high < np.inf:
        raise InputError(
            f"--window: expected percentile, range, slice_max or LOW,HIGH with LOW below HIGH, got {text!r}; "
            "write for instance --window=-160,240"
        )
    return Fixed(low, high)
