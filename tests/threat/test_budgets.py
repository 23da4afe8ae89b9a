"""Budgets with a unit: how they are read, ordered, and turned into a fraction of a case's window."""

import math

import pytest

from medseg_attack.errors import InputError
from medseg_attack.threat.budgets import Budget, parse_budget

CT = {"width": 400.0, "slope": -2.0, "unit": "HU", "noise": 0.03, "case": "c"}


@pytest.mark.parametrize(
    ("text", "value", "unit", "shown"),
    [
        ("0", 0.0, "", "0"),
        ("0.01", 0.01, "", "0.01"),
        (" 4 / 255 ", 4 / 255, "", "4/255"),
        ("1e-3", 0.001, "", "1e-3"),
        (".5%window", 0.5, "%window", ".5%window"),
        ("5 hu", 5.0, "HU", "5hu"),
        ("5/2HU", 2.5, "HU", "5/2HU"),
        ("20raw", 20.0, "raw", "20raw"),
        ("1sigma", 1.0, "sigma", "1sigma"),
        ("3", 3.0, "", "3"),
    ],
)
def test_budgets_are_read(text: str, value: float, unit: str, shown: str) -> None:
    assert parse_budget(text) == Budget(value, unit, shown)
    assert str(parse_budget(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "many", "1.2.3", "1/0", "4/", "5mm", "0.1 0.2", "nan", "1/2.3.4", "1e999", "1e999HU"]
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"expected eps as 0\.01, 4/255, or a number with a unit"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["-0.01", "-4/255", "-1HU"])
def test_a_negative_budget_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected eps >= 0"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        ("4/255", 4 / 255),
        ("0.5%window", 0.005),
        ("20HU", 20 / 400),
        ("20raw", 20 * 2 / 400),
        ("2sigma", 2 * 0.03),
        ("0", 0.0),
        ("399HU", 399 / 400),
    ],
)
def test_a_budget_is_a_fraction_of_the_window(text: str, fraction: float) -> None:
    assert parse_budget(text).fraction(**CT) == fraction  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["1", "100%window", "400HU", "200raw", "34sigma", "1.5"])
def test_a_budget_of_the_whole_window_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected eps below the intensity window of c"):
        parse_budget(text).fraction(**CT)  # type: ignore[arg-type]


def test_hounsfield_units_are_those_of_a_scan_in_hu() -> None:
    for unit, shown in (("", "no unit"), ("SUV", "SUV")):
        with pytest.raises(InputError, match=f"expected intensities in HU for --eps 5HU, got {shown} in c"):
            parse_budget("5HU").fraction(**CT | {"unit": unit})  # type: ignore[arg-type]
    assert parse_budget("5raw").fraction(**CT | {"unit": ""}) == 10 / 400  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "unlike", "refused"),
    [
        ("5HU", "width", True),
        ("5raw", "width", True),
        ("5raw", "slope", True),
        ("1sigma", "width", True),
        ("5HU", "slope", False),
        ("1sigma", "slope", False),
        ("4/255", "width", False),
        ("1%window", "width", False),
    ],
)
def test_channels_of_unlike_windows_share_no_unit_but_a_fraction(text: str, unlike: str, refused: bool) -> None:
    case = CT | {unlike: math.nan}
    if not refused:
        assert parse_budget(text).fraction(**case) == parse_budget(text).fraction(**CT)  # type: ignore[arg-type]
        return
    with pytest.raises(InputError, match="one intensity window and one scale of all channels"):
        parse_budget(text).fraction(**case)  # type: ignore[arg-type]


def test_budgets_are_ordered_by_unit_and_then_by_value() -> None:
    texts = ["2HU", "1HU", "0.2", "3raw", "0.1", "1%window"]
    assert [str(budget) for budget in sorted(map(parse_budget, texts))] == [
        "0.1",
        "0.2",
        "1%window",
        "1HU",
        "2HU",
        "3raw",
    ]
