"""The gate end to end on runs whose truth is known: what it catches, what it lets pass, what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.rules import drops, levels, verdict
from helpers.runs import PIXELS, dice_of, edit, rerun, retrained, worse, write_run
from scipy.stats import beta
from typer.testing import CliRunner

from medseg_attack.cli import app
from medseg_attack.errors import InputError
from medseg_attack.gate.rules import Rule, parse
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.reading import read_runs
from medseg_attack.runs.rows import ROWS_VERSION
from medseg_attack.stats.patients import signed_rank

PATIENTS = 40


def compare(*words: str | Path, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["compare", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def told(result: Any) -> str:
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(n, marks=pytest.mark.slow) for n in range(5, 20))])
def test_three_points_worse_is_caught_and_a_rerun_passes(tmp_path: Path, seed: int) -> None:
    dice = dice_of(seed, PATIENTS)
    old = write_run(tmp_path / "old", dice)
    regressed = write_run(tmp_path / "regressed", retrained(dice, seed, 0.03), weights="b")
    again = write_run(tmp_path / "again", rerun(dice, seed))
    as_good = write_run(tmp_path / "as_good", retrained(dice, seed, 0.0), weights="c")
    rule = ["--reference", old, "--fail-if", "dice_drop>0.02@sig", "--json"]
    (check,) = json.loads(compare(regressed, *rule, code=1).stdout)["gate"]["checks"]
    assert check["failed"]
    assert check["low"] > 0.02
    for run in (again, as_good):
        assert json.loads(compare(run, *rule).stdout)["gate"]["passed"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("adv_dice<0.70@organ=stomach", Rule("", "adv_dice", "", "<", 0.7, {"organ": "stomach"})),
        ("dice_drop>0.02@sig", Rule("", "adv_dice", "drop", ">", 0.02, {}, True)),
        (" clean_dice_drop >= 1/50 @sig @eps=0.1 ", Rule("", "clean_dice", "drop", ">=", 0.02, {"eps": "0.1"}, True)),
        (
            "hd95_mm_rise>2.5@attack=pgd(steps=4, objective=bce)@model=my net",
            Rule("", "adv_hd95_mm", "rise", ">", 2.5, {"attack": "pgd(steps=4, objective=bce)", "model": "my net"}),
        ),
        ("missed<=1e-3", Rule("", "missed", "", "<=", 0.001)),
        ("missed_rise>-.5", Rule("", "missed", "rise", ">", -0.5)),
    ],
)
def test_rules_are_read(text: str, rule: Rule) -> None:
    assert parse(text) == Rule(text, *list(vars(rule).values())[1:])


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("", 1, "a metric"),
        ("<0.7", 1, "a metric"),
        ("adv_dice", 9, "<, <=, > or >="),
        ("adv_dice=0.7", 9, "<, <=, > or >="),
        ("adv_dice<", 10, "a number"),
        ("adv_dice< many", 11, "a number"),
        ("adv_dice<0.7 stomach", 14, "the end or @"),
        ("adv_dice<0.7@organ", 19, "=NAME after @organ"),
        ("adv_dice<0.7@organ=", 19, "=NAME after @organ"),
        ("adv_dice<0.7@orgna=stomach", 14, "sig, organ"),
        ("adv_dice<0.7@sig=1", 14, "sig, organ"),
        ("adv_dice<0.7@organ=a@organ=b", 22, "one @organ"),
    ],
)
def test_what_is_no_rule_is_marked_where_it_goes_wrong(text: str, position: int, expected: str) -> None:
    with pytest.raises(InputError) as raised:
        parse(text)
    sentence, shown, mark = str(raised.value).split("\n")
    assert f"expected {expected}" in sentence
    assert f"position {position} " in sentence
    assert (shown, mark) == (f"  {text}", " " * (position + 1) + "^")


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A reference, and a model that is 10 points worse on every scan."""
    dice = dice_of(0, 12)
    for eps in (0.01, 0.02):
        write_run(tmp_path / "old", dice, eps=eps)
        write_run(tmp_path / "new", worse(dice, 0.1), eps=eps, weights="b")
    return tmp_path / "new", tmp_path / "old"


def test_a_rule_that_is_not_one_is_told_with_its_mark(two: tuple[Path, Path]) -> None:
    result = compare(two[0], "--fail-if", "adv_dice=0.7", code=2)
    assert "position 9" in told(result)
    lines = result.stderr.splitlines()
    assert lines[-1].index("^") == lines[-2].index("=")


def test_a_rule_takes_a_budget_and_an_attack_as_the_table_shows_them(tmp_path: Path) -> None:
    for eps, text in ((0.0125, "5HU"), (0.025, "10HU")):
        write_run(tmp_path / "a", dice_of(0, 12), eps=eps, attack=f"fgsm {text}", ball=f"linf(eps={text})")
    for size in ("5HU", "0.0125"):
        rule = f"adv_dice<0.99@attack=fgsm@eps={size}"
        content = json.loads(compare(tmp_path / "a", "--json", "--fail-if", rule, code=1).stdout)
        assert [(one["attack"], one["eps"]) for one in content["gate"]["checks"]] == [("fgsm", 0.0125)]
    assert "here is: 10HU, 5HU" in told(compare(tmp_path / "a", "--fail-if", "adv_dice<0.9@eps=7HU", code=2))


def test_no_value_of_a_verdict_is_minus_zero(two: tuple[Path, Path]) -> None:
    result = compare(two[0], "-r", two[0], "--fail-if", "dice_drop>0.02")
    assert "-0.000" not in result.stdout


def test_a_rule_looks_at_what_it_filters(two: tuple[Path, Path]) -> None:
    rules = ["dice_drop>0.05@eps=0.02@organ=stomach", "dice_drop>0.15", "hd95_mm_rise>3"]
    words = [word for rule in rules for word in ("--fail-if", rule)]
    content = json.loads(compare(two[0], "-r", two[1], "--json", *words, code=1).stdout)
    checks = content["gate"]["checks"]
    assert [(one["rule"], one["eps"], one["organ"], one["failed"]) for one in checks] == [
        ("dice_drop>0.05@eps=0.02@organ=stomach", 0.02, "stomach", True),
        ("dice_drop>0.15", 0.01, "mean", False),
        ("dice_drop>0.15", 0.02, "mean", False),
        ("hd95_mm_rise>3", 0.01, "mean", True),
        ("hd95_mm_rise>3", 0.02, "mean", True),
    ]
    assert [one["value"] for one in checks] == pytest.approx([0.1, 0.1, 0.1, 4.0, 4.0], abs=1e-3)
    assert {one["n"] for one in checks} == {12}


def test_levels_need_no_reference_and_changes_do(two: tuple[Path, Path]) -> None:
    compare(two[0], "--fail-if", "adv_dice<0.3")
    compare(two[0], "--fail-if", "adv_dice<0.9", code=1)
    compare(two[0], "--fail-if", "adv_dice<0.9", "--exit-zero")
    assert "give --reference OLD" in told(compare(two[0], "--fail-if", "dice_drop>0.1", code=2))


def test_the_table_shows_both_and_fits(two: tuple[Path, Path]) -> None:
    table = compare(two[0], "-r", two[1], "--fail-if", "dice_drop>0.02@sig", code=1).stdout
    assert max(map(len, table.splitlines())) <= 100
    for word in ("clean", "adv", "-0.100", "FAILS", "2 of 2 checks fail", "Holm"):
        assert word in " ".join(table.split())
    changes = json.loads(compare(two[0], "-r", two[1], "--json").stdout)["changes"]
    assert len(changes) == 2 * 4
    assert {round(one["mean"], 3) for one in changes} == {-0.1}
    assert all(one["p_holm"] == pytest.approx(2 * one["p"]) for one in changes)


def test_machines_read_the_verdicts(two: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "gate.xml"
    rules = ["--fail-if", "dice_drop>0.02", "--fail-if", "missed>0.5"]
    result = compare(two[0], "-r", two[1], *rules, "--junit", file, "--github", code=1)
    suite = ElementTree.parse(file).getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("4", "2")
    assert [case.find("failure") is not None for case in suite] == [True, True, False, False]
    annotations = [line for line in result.stdout.splitlines() if line.startswith("::")]
    assert len(annotations) == 2
    assert all(line.startswith("::error title=medattack gate::dice_drop>0.02 fails for unet") for line in annotations)
    assert all("95 %25 interval" in line for line in annotations)
    passed = compare(two[0], "-r", two[1], "--fail-if", "missed>0.5", "--github").stdout
    assert "::notice" in passed
    assert "::error" not in passed


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"data": "e" * 64},
            "data: toy here, other content under that name there (fingerprints dddddddddddd and eeeeeeeeeeee)",
        ),
        ({"attack": "fgsm(linf(0.03), bce)"}, "attack: 'fgsm(linf(0.01), bce)' here, 'fgsm(linf(0.03), bce)' there"),
        ({"seed": 7}, "seed: 0 here, 7 there"),
        ({"cases": "e" * 64}, "cases: 16 of test here, 16 of test there, of the same names"),
        ({"fitted_on": "e" * 64}, "fitted_on: the attack learned on other training cases here than there"),
        ({"rows_version": 1}, f"rows_version: {ROWS_VERSION} here, 1 there"),
        ({"metrics": []}, "metrics: ['hd95_mm'] here, [] there"),
        ({"unheard_of": 1}, "unheard_of: None here, 1 there"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unlike_runs_are_not_compared(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    dice = dice_of(0, 8)
    new = write_run(tmp_path / "new", dice, weights="b")
    old = write_run(tmp_path / "old", dice, config=changed)
    result = told(compare(new, "--reference", old, "--fail-if", "dice_drop>0.02", code=2))
    assert said in result
    assert str(old) in result
    assert "weights:" not in result


def test_a_refusal_of_other_cases_names_them(tmp_path: Path) -> None:
    new = write_run(tmp_path / "new", dice_of(0, 4, scans=1), weights="b")
    old = write_run(tmp_path / "old", dice_of(0, 9, scans=1), config={"cases": "e" * 64}, names="q{}", split="val")
    result = told(compare(new, "--reference", old, code=2))
    here, there = "only here p00_s0, p01_s0, p02_s0 and 1 more", "only there qp00_s0, qp01_s0, qp02_s0 and 6 more"
    assert f"cases: 4 of test here, 9 of val there, {here}, {there} (in {old})" in result
    assert "eeee" not in result


def test_flags_say_whether_they_are_of_the_reference(two: tuple[Path, Path]) -> None:
    flag = {"code": "MA001", "title": "wrong", "verdict": "invalid", "todo": "mend it", "about": "x", "seen": "1"}
    for file in two[1].rglob("run.json"):
        edit(file, flags=[flag], checks=True)
    for file in two[0].rglob("run.json"):
        edit(file, checks=True)
    result = compare(two[0], "-r", two[1], "--fail-if", "flag=MA001", code=1)
    assert "MA001 invalid - unet (reference), x: wrong (1); mend it" in " ".join(result.output.split())
    markdown = compare(two[0], "-r", two[1], "--fail-if", "flag=MA001", "--markdown", code=1).stdout
    rows = [line for line in markdown.splitlines() if "flag=MA001" in line]
    assert ["(reference)" in line for line in rows] == [False, False, True, True]
    assert ["FAILS" in line for line in rows] == [False, False, True, True]


def test_a_run_that_the_new_model_lacks_is_missed(two: tuple[Path, Path]) -> None:
    shutil.rmtree(two[0] / "unet-b" / "fgsm_bce_0.02")
    assert "fgsm_bce_0.02" in told(compare(two[0], "-r", two[1], code=2))


def test_of_several_models_the_one_of_the_same_name_is_taken(two: tuple[Path, Path]) -> None:
    for eps in (0.01, 0.02):
        write_run(two[1], dice_of(3, 12), model="other", weights="d", eps=eps)
    content = json.loads(compare(two[0], "-r", two[1], "--json").stdout)
    assert {round(one["mean"], 3) for one in content["changes"]} == {-0.1}
    for file in two[0].rglob("run.json"):
        edit(file, model="third")
    assert "got several" in told(compare(two[0], "-r", two[1], code=2))


def test_a_gate_that_could_never_close_is_refused(tmp_path: Path) -> None:
    dice = dice_of(0, 5)
    new, old = write_run(tmp_path / "new", worse(dice, 0.5), weights="b"), write_run(tmp_path / "old", dice)
    rule = ["--fail-if", "dice_drop>0.02@sig"]
    assert "got 5" in told(compare(new, "-r", old, *rule, code=2))
    compare(new, "-r", old, "--fail-if", "dice_drop>0.02", code=1)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("adv_dcie<0.5", "did you mean adv_dice"),
        ("adv_dice<0.5@organ=liver", "stomach"),
        ("adv_dice<0.5@attack=pgd", "there is: fgsm"),
        ("adv_dice<0.5@eps=0.5", "there is: 0.01, 0.02"),
        ("adv_nsd<0.5", "adv_hd95_mm"),
    ],
)
def test_a_rule_about_nothing_is_refused(two: tuple[Path, Path], rule: str, said: str) -> None:
    assert said in told(compare(two[0], "--fail-if", rule, code=2))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--github"], "add --fail-if"),
        (["--exit-zero"], "add --fail-if"),
        (["--fail-if", "adv_dice<0.1", "--github", "--json"], "choose one"),
        (["--paired", "model"], "several models"),
        (["--paired", "attack"], "several attacks"),
        (["--reference", "nowhere"], "nowhere"),
        (["--reference", "nowhere", "--costs"], "choose one"),
    ],
)
def test_what_makes_no_sense_together_is_refused(two: tuple[Path, Path], words: list[str], said: str) -> None:
    assert said in told(compare(two[0], *words, code=2))


def test_a_run_without_its_header_is_refused_on_either_side(two: tuple[Path, Path]) -> None:
    (two[1] / "unet-a" / "fgsm_bce_0.02" / "run.json").unlink()
    assert "without run.json" in told(compare(two[0], "-r", two[1], code=2))
    assert "without run.json" in told(compare(two[1], code=2))


def test_parts_of_two_configurations_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", dice_of(0, 8))
    other = write_run(tmp_path / "other", dice_of(0, 8), eps=0.02)
    shutil.copy(RunFolder(other).part(0), RunFolder(one).part(1))
    result = told(compare(one, code=2))
    assert "parts of one configuration" in result
    assert "00001.parquet" in result


def test_a_part_that_went_missing_is_noticed(tmp_path: Path) -> None:
    run = write_run(tmp_path, dice_of(0, 8))
    edit(run / "run.json", cases=99)
    with pytest.raises(InputError, match=r"the 99 cases .* got 16"):
        read_runs([run])


def test_models_are_paired_and_ranked(tmp_path: Path) -> None:
    dice = dice_of(0, 12)
    write_run(tmp_path, dice, model="good")
    write_run(tmp_path, worse(dice, 0.1), model="bad", weights="b")
    write_run(tmp_path, retrained(dice, 0, 0.0), model="same", weights="c")
    text = compare(tmp_path, "--paired", "model").stdout
    assert max(map(len, text.splitlines())) <= 100
    content = json.loads(compare(tmp_path, "--paired", "model", "--json").stdout)
    pairs = {(one["new"], one["old"]): one for one in content["paired"]}
    assert len(pairs) == 3
    assert pairs["same", "bad"]["p_holm"] < 0.01
    ranks = {one["model"]: one for one in content["ranks"]}
    assert ranks["bad"]["3"] == 1.0
    assert 0 < ranks["good"]["1"] < 1
    assert 0 < ranks["same"]["1"] < 1
    for model in ranks.values():
        assert sum(model[place] for place in "123") == pytest.approx(1)


def test_attacks_are_paired_on_the_same_weights_and_budget(tmp_path: Path) -> None:
    dice = dice_of(0, 12)
    for weights, base in (("a", 0.0), ("b", 0.3)):
        for loss, by in (("bce", 0.0), ("ce", 0.1)):
            write_run(tmp_path, worse(dice, base + by), weights=weights, loss=loss)
    write_run(tmp_path, worse(dice, 0.5), eps=0.02)
    write_run(tmp_path, worse(dice, 0.4), loss="in_l2", ball="l2(eps=0.01)")
    shown = compare(tmp_path, "--paired", "attack").stdout
    assert "under the first attack" in shown
    assert max(map(len, shown.splitlines())) <= 100
    content = json.loads(compare(tmp_path, "--paired", "attack", "--json").stdout)
    pairs = [(one["new"], one["old"], one["weights"], round(one["mean"], 3)) for one in content["paired"]]
    assert pairs == [("fgsm ce", "fgsm bce", "unet-a", -0.1), ("fgsm ce", "fgsm bce", "unet-b", -0.1)]
    assert all(one["p_holm"] < 0.01 for one in content["paired"])
    assert {(one["attack"], one["seen"]) for one in content["ranks"]} == {("fgsm ce", 1), ("fgsm bce", 2)}


def test_groups_of_two_and_of_three_stand_in_one_table(tmp_path: Path) -> None:
    """Balls of one attack alone have no ranks; two models of one name have two, not as many as labels."""
    dice = dice_of(0, 12)
    for eps, losses in ((0.01, ("bce", "ce")), (0.02, ("bce", "ce", "dlr")), (0.03, ("bce",))):
        for n, loss in enumerate(losses):
            write_run(tmp_path, worse(dice, 0.1 * n), eps=eps, loss=loss)
    content = json.loads(compare(tmp_path, "--paired", "attack", "--json").stdout)
    assert [len([p for p in content["paired"] if p["eps"] == eps]) for eps in (0.01, 0.02, 0.03)] == [1, 3, 0]
    assert "as 3." in compare(tmp_path, "--paired", "attack").stdout
    for eps in (0.01, 0.02):
        write_run(tmp_path, worse(dice, 0.2), eps=eps, weights="b")
    assert "as 3." not in compare(tmp_path, "--paired", "model").stdout


def test_two_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    dice = dice_of(0, 12)
    write_run(tmp_path, dice)
    write_run(tmp_path, worse(dice, 0.1), weights="b")
    (pair,) = json.loads(compare(tmp_path, "--paired", "model", "--json").stdout)["paired"]
    assert pair["new"] != pair["old"]
    assert pair["mean"] == pytest.approx(-0.1, abs=1e-3)


SIMILAR = [0.28 + 0.01 * n for n in range(12)]


@pytest.mark.parametrize(
    ("rule", "values", "failed"),
    [
        ("dice_drop>0.2@sig", SIMILAR, True),
        ("dice_drop<0.5@sig", SIMILAR, True),
        ("dice_drop>0.27@sig", [0.3] * 19 + [-0.1], False),  # the interval begins below 0.27, and p is 0.0002
        ("dice_drop<0.33@sig", [0.3] * 19 + [0.7], False),  # the interval ends above 0.33, and p is 0.0002
        ("dice_drop>0.25@sig", [0.8] * 8 + [0.24] * 12, False),  # the interval begins at 0.33, and p is 0.3
    ],
)
def test_a_rule_on_certainty_needs_both_ends_of_the_interval_and_the_test(
    rule: str, values: list[float], failed: bool
) -> None:
    assert verdict(rule, *drops(*values)).failed == failed


def test_the_test_is_of_the_rules_number_and_not_of_zero() -> None:
    values = np.array([0.8] * 8 + [0.24] * 12)
    result = verdict("dice_drop>0.25@sig", *drops(*values))
    assert result.p == pytest.approx(signed_rank(values - 0.25))
    assert result.low > 0.25 > signed_rank(values)


def test_a_distance_can_be_as_long_as_the_diagonal() -> None:
    rows = levels([0.9] * 8, hd95_mm_clean=2.0, hd95_mm_adv=4.0, diagonal_mm=100.0)
    assert verdict("adv_hd95_mm>3", rows).high == pytest.approx(4 + 96 * (1 - 0.025 ** (1 / 8)), abs=2)
    rise = verdict("hd95_mm_rise>1", rows, rows.assign(hd95_mm_adv=3.0))
    share = beta.ppf(0.975, 8 / 40, 8)
    assert (rise.low, rise.high) == pytest.approx((1 - 4 * share, 1 + 96 * share), abs=2)


def test_an_organ_that_was_never_hit_cannot_be_missed() -> None:
    """A clean prediction beside the organ found nothing that an attack could take."""
    gone = {"n_adv": 0, "hit_adv": 0}
    assert verdict("missed>0.5", levels([0.0] * 8, **gone)).failed
    rows = levels([0.0] * 8, **gone)
    rows.loc[:5, "hit_clean"] = 0
    rows.loc[6:, ["n_adv", "hit_adv"]] = PIXELS  # the two that were hit are found
    assert not verdict("missed>0.0", rows).failed
