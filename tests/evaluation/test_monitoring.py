"""A monitor of queries: its rate of false alarms on drawn numbers, and its alarm at scans of another kind."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import medattack

from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.errors import InputError
from medseg_attack.evaluation.monitoring import RATE, WINDOW, first_alarm, least_cover, peaks, watch
from medseg_attack.models.checkpoints import build_model
from medseg_attack.report.side_tables.extraction import monitor_sheet
from medseg_attack.types import Case, CaseRef

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("monitored")
    medattack("prepare", root / "scans", "--format", "phantom", "--out", root / "data", "--size", "32,32")
    return root / "data"


@dataclass(frozen=True)
class Negatives:
    """The same scans, bright where they are dark."""

    data: Prepared

    def read(self, ref: CaseRef) -> Case:
        case = self.data.read(ref)
        return replace(case, image=1 - case.image)


def test_scans_of_another_kind_raise_an_alarm_with_the_first_window(data: Path) -> None:
    own = open_prepared(data)
    victim = build_model("unet_small(channels=(4, 8))", own.task, seed=0).eval()
    queries = list(own.refs("train", 0, 2))[:60]
    watched = watch(victim, own, Negatives(own), queries, 0, CPU)
    assert watched.alarm == watched.window == 25
    usual = watch(victim, own, own, queries, 0, CPU)
    assert usual.alarm == usual.cover == 0  # what it learned from is usual
    with pytest.raises(InputError, match="got no val patients"):
        watch(victim, replace(own, splits=dict.fromkeys(own.splits, 1)), own, queries, 0, CPU)


def test_streams_of_patients_like_those_of_the_limit_raise_as_many_alarms_as_it_is_for() -> None:
    rng = np.random.default_rng(0)

    def hospital() -> dict[str, np.ndarray]:
        return {str(n): rng.normal(rng.normal(), 1, 10) for n in range(400)}

    limit = np.quantile(peaks(hospital(), 100, WINDOW, rng), 1 - RATE)
    rate = (peaks(hospital(), 100, WINDOW, rng) > limit).mean()
    assert 0.01 < rate < 0.12


def test_an_alarm_is_counted_in_queries() -> None:
    assert first_alarm(np.array([0.0, 9.0, 0.0, 0.0]), 3, 3.0) == 0
    assert first_alarm(np.array([0.0, 9.0, 1.0, 0.0]), 3, 3.0) == 3
    assert first_alarm(np.array([5.0, 0.0]), 1, 3.0) == 1


def test_the_command_says_after_how_many_queries(data: Path, tmp_path: Path) -> None:
    words = ["extract", "--data", data, "--victim", "oracle", "--home", tmp_path / "home", "--queries", 5, "--steps", 2]
    words += ["--monitor", data, "--out", tmp_path / "copy"]
    content = json.loads(medattack(*words, "--json").stdout)
    assert set(content["monitor"]) == {"window", "alarm", "false_alarms", "cover"}
    assert content["monitor"]["window"] == 5
    printed = " ".join(medattack(*words).stdout.split())
    assert "false alarms" in printed
    assert "as they are, non_adaptive" in printed
    assert "hidden among usual ones" in printed


@pytest.mark.parametrize(("far", "passing"), [(2.0, 25), (2.1, 22), (10.0, 2), (20.0, 1)])
def test_the_fewest_usual_queries_are_those_that_leave_as_many_others_in_a_window_as_pass(
    far: float, passing: int
) -> None:
    """Of 25 queries, k at distance d and the others at 1, the mean is at most 2 where k <= 25 / (d - 1)."""
    window, limit = 25, 2.0
    assert passing == min(int(window / (far - 1) + 1e-9), window)
    fewest = math.ceil(window / passing) - 1  # k of them stand in each window of 25 if 1 + n >= 25 / k
    assert least_cover(np.full(60, far), np.ones(7), window, limit) == fewest


def test_what_is_far_enough_is_hidden_by_no_number_of_usual_queries() -> None:
    """One query at 27 in a window of 25 lies above a limit of 2, and usual ones that lie above it hide nothing."""
    assert least_cover(np.full(60, 26.0), np.ones(7), 25, 2.0) == 24
    assert least_cover(np.full(60, 27.0), np.ones(7), 25, 2.0) is None
    assert least_cover(np.full(60, 10.0), np.full(7, 3.0), 25, 2.0) is None


def test_the_table_says_what_a_thief_who_hides_pays() -> None:
    watched = {"window": 25, "alarm": 25, "false_alarms": 0.04, "cover": 12}
    plain, hidden = monitor_sheet(watched, 60).rows
    assert plain[1:] == ["0", "60", "25"]
    assert hidden[1:] == ["12", "780", "none"]
    plain, hidden = monitor_sheet(watched | {"cover": None}, 60).rows
    assert hidden[1:] == ["any up to 24", "-", "with each number"]
