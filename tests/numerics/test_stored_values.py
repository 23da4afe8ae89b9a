"""Stored values on tables worked out by hand: windows, padding, the ends of a type, floats, several cases."""

import math

import pytest
import torch

from medseg_attack.numerics.stored_values import FLOAT32_SLACK, StoredValues
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Case, Storage, Window

WIDE = Linf(0.99)


def case(values: list[float], dtype: torch.dtype, window: tuple[float, float], **storage: object) -> Case:
    stored = torch.tensor(values, dtype=dtype).view(1, 1, -1)
    own = Storage(stored, **storage)  # type: ignore[arg-type]
    low, high = window
    native = stored.double() * own.slope + own.inter
    image = ((native - low) / (high - low)).clamp(0, 1).float()
    return Case("c", "v", "g", image, image > 2, (1.0, 1.0), Window(low, high), storage=own)


def of(*cases: Case) -> StoredValues:
    levels = StoredValues.of(cases, "cpu")
    assert levels is not None
    return levels


def moved(one: Case, change: list[float], ball: Linf = WIDE) -> list[float]:
    """The stored values nearest to the image with a change that is told in stored values."""
    levels = of(one)
    own = one.storage
    assert own is not None
    assert isinstance(own.slope, float)
    x0 = one.image[None].double()
    low, high = one.window.low, one.window.high
    assert isinstance(low, float | int)
    assert isinstance(high, float | int)
    delta = torch.tensor(change, dtype=torch.float64).view_as(x0) * own.slope / (high - low)
    result: list[float] = levels.nearest(x0 + delta, x0, ball).flatten().tolist()
    return result


def test_what_a_window_shows_as_0_and_1_may_move_and_what_lies_beyond_may_not() -> None:
    one = case([9, 10, 15, 20, 21], torch.int16, (5, 10), slope=0.5)
    assert of(one).outside.flatten().tolist() == [True, False, False, False, True]
    assert moved(one, [2.0, 2.0, -2.0, -2.0, -2.0]) == [9, 12, 13, 18, 21]


def test_a_case_without_stored_values_has_none() -> None:
    one = case([1], torch.int16, (0, 10))
    bare = Case("c", "v", "g", one.image, one.target, (1.0, 1.0), Window(0, 10))
    assert StoredValues.of([one, bare], "cpu") is None


def test_an_integer_is_rounded_towards_the_source() -> None:
    one = case([50, 50, 50, 50], torch.int16, (0, 100))
    assert moved(one, [2.9, -2.9, 0.9, 3.0]) == [52, 48, 50, 53]


def test_what_float32_loses_of_a_whole_level_is_given_back_unless_it_leaves_the_ball() -> None:
    one = case([50, 50], torch.int16, (0, 100))
    nearly = 3 - 0.5 * FLOAT32_SLACK * 100
    assert moved(one, [nearly, -nearly]) == [53, 47]
    assert moved(one, [3 - 1.5 * FLOAT32_SLACK * 100] * 2) == [52, 52]
    assert moved(one, [nearly, -nearly], Linf((3 - 1e-5) / 100)) == [52, 48]
    assert moved(one, [nearly, -nearly], Linf(nearly / 100 * (1 - 1e-10))) == [52, 48]


def test_one_image_that_leaves_its_ball_does_not_hold_another() -> None:
    both = of(case([50, 50], torch.int16, (0, 100)), case([50, 50], torch.int16, (0, 200)))
    x0 = torch.tensor([[0.5, 0.5], [0.25, 0.25]], dtype=torch.float64).view(2, 1, 1, 2)
    nearly = torch.tensor([3 / 100, 2 / 200], dtype=torch.float64).view(2, 1, 1, 1) - 0.5 * FLOAT32_SLACK
    result = both.nearest(x0 + nearly, x0, Linf(0.029999))
    assert result.flatten().tolist() == [52, 52, 52, 52]


@pytest.mark.parametrize(
    ("dtype", "least", "most"), [(torch.uint8, 0, 255), (torch.int8, -128, 127), (torch.int16, -32768, 32767)]
)
def test_an_integer_stays_in_its_type(dtype: torch.dtype, least: int, most: int) -> None:
    one = case([least + 1, most - 1], dtype, (least - 10, most + 10))
    assert moved(one, [-5.0, 5.0]) == [least, most]


def test_an_integer_stays_in_the_bits_that_are_stored() -> None:
    one = case([1, 4094], torch.int16, (-10, 5000), limits=(0, 4095))
    assert moved(one, [-5.0, 5.0]) == [0, 4095]


def test_a_value_that_would_be_padding_stops_beside_it() -> None:
    one = case([10, 15, 20, 12], torch.int16, (0, 30), padding=(12, 14))
    assert of(one).outside.flatten().tolist() == [False, False, False, True]
    assert moved(one, [3.0, -2.0, -6.0, 5.0]) == [11, 15, 15, 12]
    assert moved(one, [7.0, -5.0, -5.0, 5.0]) == [17, 10, 15, 12]
    two = case([10, 15, 20, 12], torch.int16, (0, 30))
    both = of(one, two)
    assert both.has_padding
    assert both.outside.flatten(1).any(1).tolist() == [True, False]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_float_goes_no_further_than_was_asked(sign: int) -> None:
    one = case([1.0], torch.float32, (0, 4))
    spacing = 2.0**-23 if sign > 0 else 2.0**-24
    for asked, given in ((0.4, 0), (0.6, 0), (1.0, 1), (1.6, 1), (5.5, 5)):
        assert moved(one, [sign * asked * spacing]) == [1 + sign * given * spacing]


def test_a_falling_slope_turns_the_change_around() -> None:
    one = case([50, 50], torch.int16, (-100, 0), slope=-1.0)
    levels, x0 = of(one), one.image[None].double()
    delta = torch.tensor([0.03, -0.03 + 0.5 * FLOAT32_SLACK], dtype=torch.float64).view_as(x0)
    assert levels.nearest(x0 + delta, x0, WIDE).flatten().tolist() == [47, 53]


def test_an_image_in_float64_starts_in_the_window_and_keeps_a_change_beyond_it() -> None:
    one = case([-4, 0, 4, 12], torch.int16, (10, 14), slope=0.5, inter=10.0)
    levels = of(one)
    after, before = levels.in_float64(levels.stored + torch.tensor([2.0, -2.0, 2.0, 4.0]))
    assert before.flatten().tolist() == [0.0, 0.0, 0.5, 1.0]
    assert after.flatten().tolist() == [0.25, -0.25, 0.75, 1.5]
    assert after.dtype == torch.float64
    shown = levels.image(levels.stored + 1, one.image[None])
    assert shown.flatten().tolist() == [0.0, 0.125, 0.625, 1.0]


def test_files_have_their_own_types_and_channels_their_own_windows() -> None:
    stored = torch.tensor([[[10.0]], [[10.0]]])
    image = torch.tensor([[[0.1]], [[0.05]]])
    one = Case(
        "c",
        "v",
        "g",
        image,
        image > 2,
        (1.0, 1.0),
        Window((0.0, 0.0), (100.0, 200.0)),
        storage=Storage(stored.to(torch.int16)),
    )
    other = Case("d", "v", "g", image, image > 2, (1.0, 1.0), Window(0.0, 100.0), storage=Storage(stored))
    levels = of(one, other)
    assert [file.dtype for file in levels.files(levels.stored)] == [torch.int16, torch.float32]
    assert levels.high.flatten(1).tolist() == [[100, 200], [100, 100]]
    assert levels.least.flatten().tolist() == [-32768, -32768, -math.inf, -math.inf]
    assert levels.most.flatten().tolist() == [32767, 32767, math.inf, math.inf]
    picked = levels.at(torch.tensor([1]))
    assert picked.dtypes == (torch.float32,)
    assert picked.high.flatten().tolist() == [100, 100]
    assert levels.at(torch.tensor([1, 0])).high.flatten(1).tolist() == [[100, 100], [100, 200]]


def test_a_moved_scan_is_rounded_to_the_nearest_level_of_its_type() -> None:
    one = case([10, 13, 20], torch.int16, (0, 30))
    other = case([10, 13, 20], torch.float32, (0, 30))
    flow = torch.zeros(2, 2, 1, 3)
    flow[:, 1] = 0.3
    result = of(one, other).warped(flow)
    assert result.stored[0].flatten().tolist() == [11, 15, 20]
    expected = torch.tensor([10.9, 15.1, 20.0], dtype=torch.float64)
    torch.testing.assert_close(result.stored[1].flatten(), expected, atol=1e-6, rtol=0)
