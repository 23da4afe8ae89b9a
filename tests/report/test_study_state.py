"""How far a study is, from its folder alone."""

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.command import medattack
from helpers.runs import write_run

from medseg_attack.errors import InputError, duration
from medseg_attack.report.progress.state import read_state
from medseg_attack.report.progress.view import headline, record, worker_sheet
from medseg_attack.runs.claim import claim
from medseg_attack.storage.heartbeats import WORKERS, at_work, worker_name

DICE = np.full((3, 2, 3), 0.5)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """One finished run of six scans."""
    write_run(tmp_path, DICE)
    (tmp_path / "study.yaml").write_text("models: [unet]\ndata: data\n")
    return tmp_path


def begin(study: Path) -> str:
    """A second run, half of which is done; its folder within the study."""
    run = write_run(study, DICE[:2], eps=0.02)
    (run / "run.json").unlink()
    return run.relative_to(study).as_posix()


def test_a_finished_study_says_so(study: Path) -> None:
    state = read_state(study)
    assert (state.cases, state.total, state.is_finished, state.seconds_left) == (6, 6, True, 0)
    assert headline(state) == "6 of 6 cases (100 %); finished; Dice 0.500, clean 0.900"
    assert json.loads(medattack("watch", study, "--json").stdout)["finished"]
    assert "6 of 6 cases" in medattack("watch", study).stdout  # it does not wait for anything


def test_what_is_left_and_how_long_it_takes_follow_from_the_parts(study: Path) -> None:
    name = begin(study)
    with at_work(study, "0/1", "cpu", {name: 6}):
        for part in study.rglob("*.parquet"):
            part.touch()
        state = read_state(study)
        assert (state.cases, state.total, state.is_finished) == (10, 12, False)
        assert state.rate > 0
        assert state.seconds_left == pytest.approx(2 / state.rate)
        (worker,) = state.workers
        assert (worker.worker.name, worker.cases, worker.worker.state) == (worker_name(), 10, "at work")
        assert "10 of 12 cases (83 %)" in headline(state)
        assert "left" in headline(state)
        printed = medattack("watch", study, "--once").stdout
    for word in (worker_name(), "at work", name.split("/")[0], "4/6", "finished", "begun"):
        assert word in printed
    state = read_state(study)
    assert math.isnan(state.rate)
    assert "nobody is at work" in headline(state)
    assert record(state)["rate"] is None


def test_without_a_record_the_total_is_that_of_a_finished_run_beside(study: Path) -> None:
    begin(study)
    assert read_state(study).total == 12


def test_a_run_that_nobody_knows_the_end_of_has_no_total(study: Path) -> None:
    begin(study)
    for header in study.rglob("run.json"):
        header.unlink()
    state = read_state(study)
    assert state.total is None
    assert headline(state).startswith("10 cases; nobody")
    assert "4/?" in medattack("watch", study, "--once").stdout


def test_runs_that_are_not_begun_are_counted(study: Path) -> None:
    with at_work(study, "0/1", "cpu", {"unet-a/another": 6}):
        state = read_state(study)
    assert (state.cases, state.total, state.is_finished) == (6, 12, False)


def test_a_study_that_nobody_has_begun_is_watched_and_waits(tmp_path: Path) -> None:
    """As after `--launcher slurm`, whose last line says to watch the study while its jobs are queued."""
    (tmp_path / "out").mkdir()
    claim(tmp_path / "out", {"data": "a"}, "models: [unet]\ndata: data\n")
    state = read_state(tmp_path / "out")
    assert (state.cases, state.total, state.is_finished, state.runs) == (0, None, False, ())
    line = "0 cases; nobody is at work: wait for jobs that are queued, else run the command that began it again"
    assert headline(state) == line
    assert line in " ".join(medattack("watch", tmp_path / "out", "--once").stdout.split())
    (tmp_path / "study.yaml").write_text("models: [unet]\n")  # a study file of the user's is no study
    (tmp_path / "out" / "identity.json").unlink()
    with pytest.raises(InputError, match="expected a run in"):
        read_state(tmp_path)


def test_one_run_of_a_study_can_be_watched(study: Path) -> None:
    name = begin(study)
    with at_work(study, "0/1", "cpu", {name: 6}):
        state = read_state(study / name)
    assert (state.cases, state.total) == (4, 6)
    assert [run.name for run in state.runs] == [Path(name).name]
    assert len(state.workers) == 1


def test_a_lost_worker_is_shown_until_its_part_is_begun_again(study: Path) -> None:
    begin(study)
    with at_work(study, "1/2", "cpu", {}):
        pass
    (file,) = (study / WORKERS).glob("*.json")
    lost = json.loads(file.read_text()) | {"ended": None, "host": "gone"}
    (study / WORKERS / "gone-1.json").write_text(json.dumps(lost))
    os.utime(study / WORKERS / "gone-1.json", (time.time() - 500,) * 2)
    file.unlink()
    assert [row[3] for row in worker_sheet(read_state(study)).rows] == ["lost"]
    with at_work(study, "1/2", "cpu", {}):
        assert [row[3] for row in worker_sheet(read_state(study)).rows] == ["at work"]


def test_a_part_is_read_again_once_it_changed(study: Path) -> None:
    assert read_state(study).runs[0].adv == pytest.approx(0.5)
    for run in study.glob("*/*/run.json"):
        run.unlink()
    write_run(study, DICE + 0.1)
    assert read_state(study).runs[0].adv == pytest.approx(0.6)


def test_several_studies_are_watched_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.yaml").write_text("models: [unet]\ndata: data\n")
        write_run(tmp_path / name, DICE)
    assert [run.name.split("/")[0] for run in read_state(tmp_path).runs] == ["a", "b"]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a run in"):
        read_state(tmp_path)
    assert "expected a folder of runs at" in medattack("watch", tmp_path / "none", code=2).stderr


def test_spans_of_time_have_two_units() -> None:
    assert [duration(s) for s in (0.4, 59.6, 3599, 86400, math.nan)] == [
        "0 s",
        "1 min 0 s",
        "59 min 59 s",
        "24 h 0 min",
        "?",
    ]
