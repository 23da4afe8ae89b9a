"""Rules as text: what each comparator means at its number, and rules on flags."""

import pytest

from medseg_attack.errors import InputError
from medseg_attack.gate.rules import FlagRule, Rule, parse


@pytest.mark.parametrize(
    ("comparator", "below", "at", "above"),
    [("<", True, False, False), ("<=", True, True, False), (">", False, False, True), (">=", False, True, True)],
)
def test_a_comparator_is_told_from_its_neighbour_at_the_number(
    comparator: str, below: bool, at: bool, above: bool
) -> None:
    rule = parse(f"adv_dice{comparator}0.5")
    assert isinstance(rule, Rule)
    assert [rule.holds(value) for value in (0.4, 0.5, 0.6)] == [below, at, above]


@pytest.mark.parametrize(
    ("text", "flag", "where"),
    [
        ("flag=MA007", "MA007", {}),
        ("flag = invalid @attack=pgd", "invalid", {"attack": "pgd"}),
        (
            "flag=upper bound on robustness@model=my net@eps=4/255",
            "upper bound on robustness",
            {"model": "my net", "eps": "4/255"},
        ),
    ],
)
def test_rules_on_flags_are_read(text: str, flag: str, where: dict[str, str]) -> None:
    assert parse(text) == FlagRule(text, flag, where)


@pytest.mark.parametrize(
    ("text", "expected", "got"),
    [
        ("flag", "=CODE such as =MA007", "'the end'"),
        ("flag=MA7", "=CODE such as =MA007", "'=MA7'"),
        ("flag>MA007", "=CODE such as =MA007", "'>MA007'"),
        ("flag=MA007@sig", "neither @sig nor @organ", "'@sig'"),
        ("flag=MA007@organ=liver", "neither @sig nor @organ", "'@organ=liver'"),
    ],
)
def test_a_rule_on_flags_takes_a_code_or_a_verdict_and_neither_organ_nor_certainty(
    text: str, expected: str, got: str
) -> None:
    with pytest.raises(InputError) as raised:
        parse(text)
    assert f"expected {expected}" in str(raised.value)
    assert f"got {got}" in str(raised.value)


@pytest.mark.parametrize("number", ["1/0", "1e999", "-1e999", "0/0"])
def test_a_number_that_is_not_finite_is_no_number_of_a_rule(number: str) -> None:
    with pytest.raises(InputError, match="expected a finite number at position 10 of --fail-if"):
        parse(f"adv_dice<{number}@sig")
