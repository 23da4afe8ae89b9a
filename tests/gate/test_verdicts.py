"""Verdicts on runs that are worked out by hand: whom a rule looks at, and what flags fail."""

import numpy as np
import pandas as pd
import pytest
from helpers.rules import levels, verdict
from helpers.runs import PIXELS

from medseg_attack.checks.flags import Finding, Flag
from medseg_attack.errors import InputError
from medseg_attack.gate.rules import parse
from medseg_attack.gate.verdicts import Verdict, judge

MANY = Finding(Flag("upper bound on robustness", "MA007", "more steps would do more", "raise steps"), "r", "0.02")
WRONG = Finding(Flag("invalid", "MA001", "a wrong number", "mend it"), "r", "1")
NOTE = Finding(Flag("note", "MA029", "too few patients", "add some"), "r", "4")


def run(name: str, dice: list[float], **columns: object) -> pd.DataFrame:
    return levels(dice).assign(run=name, pair=name, **columns)


def judged(
    *rules: str, flags: dict[str, list[Finding]], old: pd.DataFrame | None = None, checks: bool = True
) -> list[Verdict]:
    new = pd.concat([run(name, [0.9] * 8, checks=checks) for name in flags if name != "old"], ignore_index=True)
    return judge([parse(rule) for rule in rules], new, old, flags, unit="volume", empty="one")


def test_a_rule_on_flags_fails_the_runs_that_raised_it() -> None:
    verdicts = judged("flag=MA007", flags={"a": [NOTE, MANY], "b": [NOTE]})
    assert [(each.run, each.failed, each.flags, each.value, each.n) for each in verdicts] == [
        ("m pgd bce 0.01", True, ("MA007",), 1, 8),
        ("m pgd bce 0.01", False, (), 0, 8),
    ]
    assert [each.organ for each in verdicts] == ["", ""]
    assert verdicts[0].sentence.endswith(": MA007")
    assert verdicts[1].sentence.endswith(": no such flag")
    by_verdict = judged("flag=note", flags={"a": [NOTE, MANY]})
    assert by_verdict[0].flags == ("MA029",)


def test_what_a_flag_calls_invalid_passes_no_gate_unless_a_rule_on_flags_takes_its_place() -> None:
    (dice, invalid) = judged("adv_dice<0.5", flags={"a": [WRONG]})
    assert (dice.failed, invalid.failed, invalid.rule) == (False, True, "flag=invalid")
    assert len(judged("adv_dice<0.5", flags={"a": [NOTE]})) == 1
    both = judged("adv_dice<0.5", "flag=MA007", flags={"a": [WRONG]})
    assert [each.rule for each in both] == ["adv_dice<0.5", "flag=MA007"]
    assert judged(flags={"a": [WRONG]}) == []


def test_the_flags_of_the_reference_count_too() -> None:
    old = run("old", [0.9] * 8)
    verdicts = judged("flag=invalid", flags={"a": [], "old": [WRONG]}, old=old)
    assert [each.failed for each in verdicts] == [False, True]
    assert [each.run for each in verdicts] == ["m pgd bce 0.01", "m pgd bce 0.01 (reference)"]
    assert verdicts[1].sentence == "flag=invalid fails for m pgd bce eps 0.01 (reference): MA001"
    (alone,) = judged("flag=invalid", flags={"a": []}, old=run("a", [0.9] * 8))
    assert not alone.of_reference


def test_runs_that_were_not_checked_have_no_flags_to_ask_for() -> None:
    with pytest.raises(InputError, match="got a, made with --no-checks"):
        judged("flag=MA007", flags={"a": []}, checks=False)
    assert len(judged("adv_dice<0.5", flags={"a": []}, checks=False)) == 1
    mixed = pd.concat([run("a", [0.9] * 8), run("b", [0.9] * 8, checks=False)], ignore_index=True)
    with pytest.raises(InputError, match="got b, made with --no-checks"):
        judge([parse("flag=MA007")], mixed, None, {"a": (), "b": ()}, unit="volume", empty="one")


def test_a_control_is_looked_at_where_it_is_named_or_alone() -> None:
    noise = run("n", [0.1] * 8, role="control", attack="noise")
    both = pd.concat([noise, run("a", [0.9] * 8)], ignore_index=True)
    flags: dict[str, tuple[Finding, ...]] = {"n": (), "a": ()}

    def attacks(rule: str, rows: pd.DataFrame) -> list[str]:
        return [each.attack for each in judge([parse(rule)], rows, None, flags, unit="volume", empty="one")]

    assert attacks("adv_dice<0.5", both) == ["pgd"]
    assert attacks("adv_dice<0.5@attack=noise", both) == ["noise"]
    assert attacks("adv_dice<0.5", noise) == ["noise"]


def test_a_model_is_named_by_its_name_or_by_its_longer_label() -> None:
    rows = pd.concat([run("a", [0.9] * 8, label="m (a)"), run("b", [0.1] * 8, label="m (b)")], ignore_index=True)
    for name, failed in (("m", [False, True]), ("m (b)", [True]), ("m (a)", [False])):
        verdicts = judge(
            [parse(f"adv_dice<0.5@model={name}")], rows, None, {"a": (), "b": ()}, unit="volume", empty="one"
        )
        assert [each.failed for each in verdicts] == failed


def test_a_name_that_reads_as_a_number_is_no_budget() -> None:
    rows = run("a", [0.1] * 8, attack="2", eps=4 / 255)
    for name in ("attack=2", "eps=4/255", "eps=0.01568627451"):
        (only, *_) = judge([parse(f"adv_dice<0.5@{name}")], rows, None, {"a": ()}, unit="volume", empty="one")
        assert only.failed
    with pytest.raises(InputError, match="expected a run with eps"):
        judge([parse("adv_dice<0.5@eps=0.0157")], rows, None, {"a": ()}, unit="volume", empty="one")


def test_a_rule_on_an_organ_looks_at_no_other() -> None:
    rows = pd.concat([run("a", [0.9] * 8), run("a", [0.1] * 8, cls="liver")], ignore_index=True)
    for organ, value in (("liver", 0.1), ("organ", 0.9)):
        (only,) = judge([parse(f"adv_dice<0.5@organ={organ}")], rows, None, {"a": ()}, unit="volume", empty="one")
        assert (only.organ, only.value) == (organ, pytest.approx(value))
    (mean,) = judge([parse("adv_dice<0.5")], rows, None, {"a": ()}, unit="volume", empty="one")
    assert (mean.organ, mean.value) == ("mean", pytest.approx(0.5))


def test_a_level_has_gaffkes_interval_and_an_iou_is_a_level() -> None:
    most = 1 - 0.025 ** (1 / 8)
    result = verdict("adv_dice<0.5", levels([0.6] * 8))
    assert (result.low, result.high) == pytest.approx((0.6 * (1 - most), 0.6 + 0.4 * most), abs=0.02)
    iou = 0.6 / (2 - 0.6)
    assert verdict("adv_iou<0.4", levels([0.6] * 8)).value == pytest.approx(iou, abs=1e-3)
    assert verdict("clean_iou<0.4", levels([0.6] * 8)).value == 1.0
    assert verdict("clean_dice<0.4", levels([0.6] * 8)).value == 1.0


def test_a_p_of_5_percent_and_more_is_chance() -> None:
    """Six losses of eight have p = 0.039 or 0.055, as their ranks fall."""
    for gains, failed in (((1, 2), True), ((1, 3), False)):
        sizes = np.arange(1, 9) / 100
        drops = np.where(np.isin(np.arange(1, 9), gains), -1, 1) * sizes
        result = verdict("dice_drop>0.0@sig", levels(list(0.9 - drops)), levels([0.9] * 8))
        assert (result.p < 0.05) == failed
        assert result.low > 0
        assert result.failed == failed


def test_a_rule_on_certainty_needs_more_patients_the_more_runs_it_looks_at() -> None:
    def ask(*patients: int) -> list[Verdict]:
        new = pd.concat([run(f"r{i}", [0.5] * n, eps=i) for i, n in enumerate(patients)], ignore_index=True)
        flags: dict[str, tuple[Finding, ...]] = {f"r{i}": () for i in range(len(patients))}
        return judge([parse("adv_dice<0.95@sig")], new, None, flags, unit="volume", empty="one")

    assert [each.p for each in ask(6)] == [2 / 2**6]
    assert [each.p for each in ask(7, 7, 7)] == [3 * 2 / 2**7] * 3
    for patients in ((6, 6), (6, 12), (7, 7, 7, 7)):
        with pytest.raises(
            InputError, match=f"expected enough patients .* got {patients[0]}, and no signed.* narrow the rule"
        ):
            ask(*patients)
    with pytest.raises(InputError, match=r"expected 6 patients or more .* attack more patients") as error:
        ask(5)
    assert "got 5, and no signed-rank test of 5 patients can reach p < 0.05" in str(error.value)


def test_a_missed_organ_is_one_of_which_nothing_is_predicted() -> None:
    rows = levels([0.9] * 8)
    rows.loc[:1, ["n_adv", "hit_adv"]] = 0
    rows.loc[2, "hit_adv"] = 0  # predicted, though nowhere right
    assert verdict("missed>0.2", rows).value == pytest.approx(0.25)
    assert verdict("missed_rise>0.2", rows, levels([0.9] * 8)).value == pytest.approx(0.25)
    assert rows["n_adv"].max() == PIXELS


def test_an_organ_that_was_hit_in_one_pixel_can_be_missed() -> None:
    rows = levels([0.9] * 8, n_adv=0, hit_adv=0, hit_clean=1)
    assert verdict("missed>0.5", rows).value == 1.0
    assert verdict("missed>0.5", rows.assign(n_adv=1)).value == 0.0
