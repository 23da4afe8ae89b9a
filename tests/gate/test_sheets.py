"""The gate's verdicts as a table, for machines and for GitHub."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from medseg_attack.errors import InputError
from medseg_attack.gate.sheets import change_sheet, github, verdict_json, verdict_sheet, write_junit
from medseg_attack.gate.verdicts import Verdict

NAN = float("nan")
PASSES = Verdict("adv_dice<0.5", "m", "pgd", "bce", 0.01, "mean", 0.8, 0.6, 0.9, 0.04, 12, False, "0.01")
FAILS = replace(PASSES, rule="adv_dice<0.9", failed=True, n=8)
NOTHING = replace(PASSES, rule="flag=invalid", organ="", low=NAN, high=NAN, p=NAN)
FLAGGED = replace(NOTHING, value=2, failed=True, flags=("MA001", "MA002"))
UNFLAGGED = replace(NOTHING, value=0)


def test_a_verdict_shows_its_value_or_its_flags() -> None:
    sheet = verdict_sheet([PASSES, FAILS, FLAGGED, UNFLAGGED])
    assert [row[3] for row in sheet.rows] == ["0.800", "0.800", "MA001 MA002", "none"]
    assert [row[-1] for row in sheet.rows] == ["passes", "FAILS", "FAILS", "passes"]
    assert [row[4] for row in sheet.rows] == ["0.600 to 0.900"] * 2 + ["-"] * 2
    assert sheet.caption.startswith("2 of 4 checks fail, 8 patients.")
    assert sheet.columns[sheet.left] == "value"  # numbers stand at the right from there on


def test_a_gate_is_passed_if_no_check_fails() -> None:
    assert verdict_json([PASSES, UNFLAGGED])["passed"]
    assert not verdict_json([PASSES, FAILS])["passed"]
    assert verdict_json([PASSES])["checks"][0]["value"] == 0.8
    assert github([PASSES, UNFLAGGED]) == ["::notice title=medattack gate::2 checks pass"]
    assert len(github([PASSES, FAILS, FLAGGED])) == 2


def test_junit_names_the_organ_and_is_a_document_that_people_can_read(tmp_path: Path) -> None:
    file = tmp_path / "gate.xml"
    write_junit([FAILS, replace(UNFLAGGED, of_reference=True)], file)
    suite = ElementTree.parse(file).getroot().find("testsuite")
    assert suite is not None
    assert [case.get("name") for case in suite] == ["adv_dice<0.9 (mean)", "flag=invalid"]
    assert [case.get("classname") for case in suite] == ["m pgd bce eps=0.01", "m pgd bce eps=0.01 (reference)"]
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<?xml version=")
    assert "\n  <testsuite " in text
    write_junit([PASSES], file)  # its own file may be written anew
    (tmp_path / "thesis.xml").write_text("<thesis/>")
    with pytest.raises(InputError, match="something else"):
        write_junit([PASSES], tmp_path / "thesis.xml")
    assert (tmp_path / "thesis.xml").read_text() == "<thesis/>"


def test_changes_are_shown_over_all_organs_with_the_fewest_patients() -> None:
    head = {"model": "m", "attack": "pgd", "loss": "bce", "eps": 0.01, "ball": "linf(eps=0.01)"}
    numbers = {"clean_old": 0.9, "clean_new": 0.91, "adv_old": 0.6, "adv_new": 0.5, "low": -0.2, "high": -0.05}
    rows = [
        head | numbers | {"organ": organ, "mean": mean, "p": 0.01, "p_holm": p, "n": n}
        for organ, mean, p, n in (("mean", -0.1, 0.02, 9), ("liver", -0.3, 0.02, 7), ("mean", -0.12, NAN, 12))
    ]
    sheet = change_sheet(pd.DataFrame(rows), unit="volume", empty="one")
    assert [row[-3] for row in sheet.rows] == ["-0.100", "-0.120"]
    assert "paired over 9 patients" in sheet.caption
    assert "allows for patients not measured" in sheet.caption
    assert sheet.columns[sheet.left] == "eps"
