"""Which native intensities a slice shows as 0 and 1."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from medseg_attack.errors import InputError


@runtime_checkable
class WindowRule(Protocol):
    """A rule that maps a scan's intensities, (slices, rows, columns), to low and high of each slice: (slices, 2).

    NaN stands for pixels that were never measured. `str(rule)` is the text that `window_rule` turns into it.
    """

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class Percentile:
    """One window for the scan: its 0.5 and 99.5 percentile, or its range if these two are equal."""

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        measured = values[~np.isnan(values)]
        low, high = np.percentile(measured, (0.5, 99.5))
        if not low < high:
            low, high = measured.min(), measured.max()
        return np.tile(np.array([low, high], dtype=np.float64), (len(values), 1))

    def __str__(self) -> str:
        return "percentile"


@dataclass(frozen=True)
class Range:
    """One window for the scan: from its least to its greatest measured value, so that nothing of them is cut off.

    What the file calls padding is no measurement.
    """

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        return np.tile(np.array([np.nanmin(values), np.nanmax(values)], dtype=np.float64), (len(values), 1))

    def __str__(self) -> str:
        return "range"


@dataclass(frozen=True)
class SliceMax:
    """Each slice from 0 to its maximum, as in arXiv 2401.11224; 0 to 1 where that is not positive."""

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        high = np.fmax.reduce(values.reshape(len(values), -1), axis=1).astype(np.float64)
        return np.stack((np.zeros_like(high), np.where(high > 0, high, 1.0)), axis=1)

    def __str__(self) -> str:
        return "slice_max"


@dataclass(frozen=True)
class Fixed:
    """The same window everywhere, in the scan's unit; for CT in HU."""

    low: float
    high: float

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        return np.tile(np.array([self.low, self.high], dtype=np.float64), (len(values), 1))

    def __str__(self) -> str:
        return f"{self.low},{self.high}"


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
