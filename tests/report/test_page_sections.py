"""Sections of defences, detectors and certificates: shown where there are results, refused where these are damaged.

That their numbers are those of `defend`, `detect` and `certify` is shown beside the tests of these commands.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.command import medattack
from helpers.pages import detection_row, page_of, section, tables, write_detection, write_trial
from helpers.runs import dice_of, edit, write_run

from medseg_attack.runs.folder import RunFolder

SECTIONS = ("defences", "detectors", "certificates")
CLEAN = detection_row()


def test_the_page_leads_to_what_there_is_and_has_no_empty_section(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", dice_of(0, 2))
    plain = page_of(tmp_path / "plain", tmp_path / "runs")
    assert not any(f'id="{name}"' in plain or f'href="#{name}"' in plain for name in SECTIONS)
    write_detection(tmp_path / "detectors")
    write_trial(tmp_path / "trial", "voted", "unet")
    page = page_of(tmp_path / "page", tmp_path / "runs", tmp_path / "trial", tmp_path / "detectors")
    assert [name for name in SECTIONS if f'<a href="#{name}">' in page] == ["defences", "detectors"]
    assert "non_adaptive: no attack of the table knows the detector." in section(page, "detectors")
    assert "Organ by organ" in section(page, "defences")


@pytest.mark.parametrize("partial", [True, False])
def test_the_table_of_a_detector_of_some_of_the_cases_says_so(tmp_path: Path, partial: bool) -> None:
    write_run(tmp_path / "runs", dice_of(0, 2))
    write_detection(tmp_path / "detectors", partial=partial)
    page = page_of(tmp_path / "page", tmp_path / "runs", tmp_path / "detectors")
    assert ("PARTIAL: --limit left cases out." in section(page, "detectors")) == partial


def test_a_trial_without_its_facts_is_named_and_has_no_section(tmp_path: Path) -> None:
    trial = write_trial(tmp_path / "trial", "voted", "unet", patients=2)
    for part in ("native", "queries"):
        (trial / part / "study.yaml").write_text("data: d\nmodels: [unet]\n")
    assert "note:" not in medattack("report", trial, "--out", tmp_path / "out", "--worst", 0).stderr
    (trial / "native" / "trial.json").unlink()
    said = medattack("report", trial, "--out", tmp_path / "out", "--worst", 0).stderr
    assert "note: no section on the trial in" in " ".join(said.split())
    assert 'id="defences"' not in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_a_flag_stands_at_its_own_run_where_parts_of_a_trial_have_runs_of_one_name(tmp_path: Path) -> None:
    flag = {"code": "MA007", "verdict": "upper bound on robustness", "title": "more", "about": "x", "seen": "y"}
    write_run(tmp_path / "native", dice_of(0, 2), flags=[flag | {"todo": "raise steps"}])
    write_run(tmp_path / "adaptive", dice_of(0, 2) / 2, flags=[])
    page = page_of(tmp_path / "page", tmp_path)
    rows = re.findall(r'<tr data-organ="0".*?</tr>', page, re.DOTALL)
    assert sorted("MA007" in row for row in rows) == [False, True]
    medattack("report", tmp_path / "native", tmp_path / "adaptive", "--card", "--out", tmp_path / "card")
    (card,) = (tmp_path / "card").glob("*.html")
    ((_, *lines),) = [table for table in tables(card.read_text(encoding="utf-8")) if "strongest attack" in table[0]]
    assert [line[-1] for line in lines] == [""] * 4  # the stronger run has none


def test_results_without_runs_are_refused(tmp_path: Path) -> None:
    write_detection(tmp_path / "detectors")
    refusal = medattack("report", tmp_path / "detectors", "--out", tmp_path / "out", code=2)
    assert "expected runs of attacks beside what defend, detect and certify wrote" in " ".join(refusal.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_certificate_that_is_none_is_refused_by_its_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", dice_of(0, 2))
    stored = RunFolder(run)
    bounds = RunFolder.open(tmp_path / "bounds", stored.config | {"certificate": "own('net.py:build')"})
    bounds.write_table(0, stored.table(), 0.0, 1)
    shutil.copy(run / "run.json", bounds.path)
    refusal = " ".join(medattack("report", tmp_path, "--out", tmp_path / "out", code=2).stderr.split())
    assert "expected a certificate in" in refusal
    assert "unknown certificate" in refusal


def test_a_trial_whose_twin_has_no_runs_is_refused(tmp_path: Path) -> None:
    trial = write_trial(tmp_path / "trial", "voted", "unet")
    edit(trial / "native" / "trial.json", twin="fpn")
    refusal = medattack("report", trial, "--out", tmp_path / "out", code=2)
    assert "expected the runs of fpn, the twin of the trial" in " ".join(refusal.stderr.split())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rows": [CLEAN | {"kind": "noise"}]}, "got one without clean images"),
        ({"rows": [CLEAN, {"kind": "attack"}]}, "expected the field 'rows.1.attack' in"),
        ({"rows": [CLEAN, CLEAN | {"kind": "attack"}]}, "an attack without the number 'harmed' of patients"),
        ({"rows": [CLEAN | {"alarms_0.5": 0.5}]}, "got one without alarms_0.5_low"),
        ({"rows": []}, "expected the field 'rows' in"),
        ({"verdict": 1}, "expected the field 'verdict' in"),
        ({"calibration_patients": 0}, "expected the field 'calibration_patients' in"),
    ],
)
def test_a_damaged_table_of_a_detector_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", dice_of(0, 2))
    write_detection(tmp_path / "detectors", **changes)
    assert sentence in " ".join(medattack("report", tmp_path, "--out", tmp_path / "out", code=2).stderr.split())
