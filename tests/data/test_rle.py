"""Run lengths are what UW-Madison's csv holds, and nothing else is taken for them."""

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from medseg_attack.data.formats import rle
from medseg_attack.errors import InputError

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


@given(MASKS)
def test_decode_inverts_encode(mask: np.ndarray) -> None:
    assert np.array_equal(rle.decode(rle.encode(mask), mask.shape), mask)


@given(MASKS)
def test_runs_are_those_of_a_loop_over_the_pixels(mask: np.ndarray) -> None:
    runs: list[list[int]] = []
    for place, on in enumerate(mask.ravel(), start=1):
        if on and runs and sum(runs[-1]) == place:
            runs[-1][1] += 1
        elif on:
            runs.append([place, 1])
    assert rle.encode(mask) == " ".join(f"{start} {length}" for start, length in runs)


def test_rows_come_before_columns() -> None:
    assert rle.decode("4 3", (2, 3)).tolist() == [[False] * 3, [True] * 3]


def test_a_run_may_begin_where_the_one_before_ends() -> None:
    assert rle.decode("1 2 3 1", (1, 4)).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1 2 3", "odd count of 3"),
        ("1 two", "whole numbers"),
        ("1 1.5", "whole numbers"),
        ("1 99999999999999999999", "whole numbers"),
        ("1 5 3 2", "do not overlap, got '3 2'"),
        ("1 5 5 2", "do not overlap, got '5 2'"),
        ("7 2 1 2", "sorted by their start, got '1 2'"),
        ("3 1 3 1", "sorted"),
        ("0 2", "inside the 12 pixels of 3 rows x 4 columns, got '0 2'"),
        ("-3 2", "inside"),
        ("1 0", "inside"),
        ("4 -1", "inside"),
        ("12 2", "inside"),
        ("9223372036854775807 9223372036854775807", "inside"),
    ],
)
def test_what_is_not_run_lengths_is_told(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=r"expected .*, got .*; ") as error:
        rle.decode(text, (3, 4))
    assert sentence in str(error.value)


@given(st.text(alphabet="0123456789 -", max_size=20))
def test_any_text_is_a_mask_or_a_sentence(text: str) -> None:
    try:
        mask = rle.decode(text, (5, 7))
    except InputError:
        return
    assert mask.shape == (5, 7)


@pytest.mark.data
def test_the_competition_s_rows_survive_and_overlap(real_data) -> None:
    table = real_data("uw_madison_original") / "train_rows_15_casedays.csv"
    covers: dict[str, np.ndarray] = {}
    n_rows = 0
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["segmentation"]:
                mask = rle.decode(row["segmentation"], (276, 276))
                assert rle.encode(mask) == row["segmentation"]
                covers[row["id"]] = covers.get(row["id"], 0) + mask.astype(int)
                n_rows += 1
    overlapping = sum(bool((cover > 1).any()) for cover in covers.values())
    assert (n_rows, len(covers), overlapping) == (1557, 718, 120)
