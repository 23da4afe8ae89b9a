"""Run lengths as UW-Madison writes them: `start length` pairs, 1-based, row-major over (rows, columns)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg_attack.errors import InputError


def encode(mask: NDArray[Any]) -> str:
    """The runs of a (rows, columns) mask, "" if it is empty.

    >>> encode(np.array([[0, 1, 1], [1, 0, 1]]))
    '2 3 6 1'
    """
    padded = np.concatenate(([False], np.asarray(mask, dtype=bool).ravel(), [False]))
    edges = np.flatnonzero(padded[1:] != padded[:-1]) + 1
    edges[1::2] -= edges[::2]
    return " ".join(map(str, edges.tolist()))


def decode(text: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask of shape (rows, columns) that the runs describe.

    >>> decode("2 3 6 1", (2, 3)).astype(int).tolist()
    [[0, 1, 1], [1, 0, 1]]

    Raises:
        InputError: an odd count, a word that is not a whole number, or runs that overlap, are not sorted,
            are empty
            or leave the image.
    """
    starts, lengths = _pairs(text)
    n_pixels = shape[0] * shape[1]
    outside = (starts < 1) | (lengths < 1) | (lengths > n_pixels) | (starts > n_pixels - lengths + 1)
    if outside.any():
        raise _wrong(
            f"runs inside the {n_pixels} pixels of {shape[0]} rows x {shape[1]} columns",
            starts,
            lengths,
            outside,
            "take the run of this image",
        )
    unsorted = np.append(False, starts[1:] <= starts[:-1])
    if unsorted.any():
        raise _wrong("runs sorted by their start", starts, lengths, unsorted, "sort them")
    ends = starts + lengths
    overlapping = np.append(False, starts[1:] < ends[:-1])
    if overlapping.any():
        raise _wrong("runs that do not overlap", starts, lengths, overlapping, "merge it with the run before")
    widths = np.zeros(2 * len(starts) + 1, dtype=np.int64)  # of background, run, background, run ... background
    widths[1::2] = lengths
    widths[0:-1:2] = starts - np.append(1, ends[:-1])
    widths[-1] = n_pixels - widths.sum()
    return np.repeat(np.arange(len(widths)) % 2 == 1, widths).reshape(shape)


def _pairs(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    try:
        numbers = _numbers(text)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"expected whole numbers in the run lengths, got {_excerpt(text)}; write pairs of start and length"
        ) from error
    if len(numbers) % 2:
        raise InputError(
            f"expected pairs of start and length, got an odd count of {len(numbers)} numbers; "
            "copy the table again, the row may be cut off"
        )
    return numbers[::2], numbers[1::2]


def _numbers(text: str) -> NDArray[np.int64]:
    """The whole numbers of a text.

    Raises:
        ValueError, OverflowError: a word is none, or is one that 64 bits do not hold.
    """
    if text.isascii() and text.replace(" ", "").isdecimal():  # digits alone: no word that numpy would stop at
        numbers = np.fromstring(text, dtype=np.int64, sep=" ")
        if numbers.max() < np.iinfo(np.int64).max:  # what greater numbers become
            return numbers
    return np.array([int(word) for word in text.split()], dtype=np.int64)


def _wrong(
    expected: str, starts: NDArray[np.int64], lengths: NDArray[np.int64], where: NDArray[np.bool_], do: str
) -> InputError:
    first = int(np.flatnonzero(where)[0])
    return InputError(f"expected {expected}, got '{starts[first]} {lengths[first]}' (run {first + 1}); {do}")


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
