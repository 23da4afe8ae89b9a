"""`medattack detect`: a detector with a rate of false alarms, or none at all; and an attack that knows it."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.command import medattack


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and runs of an attack on its test patients."""
    root = tmp_path_factory.mktemp("detect")
    phantom = "phantom(patients=16, slices=2, side=32)"
    words = ("--format", phantom, "--test", "0.25", "--folds", "2", "--out", root / "data/p")
    medattack("prepare", root / "scans", *words)
    train = ("train", "--data", root / "data/p", "--model", "unet_small(channels=(4, 8))", "--epochs", "4")
    medattack(*train, "--lr", "1e-2", "--home", root, "--out", root / "models/m")
    attack = ("attack", "--data", root / "data/p", "--model", root / "models/m", "--no-checks", "--home", root)
    medattack(*attack, "--attack", "pgd(steps=4)", "--eps", "16/255", "--out", root / "runs/a")
    medattack(*attack, "--attack", "fgsm", "--eps", "16/255", "--save-adversarial", "all", "--out", root / "runs/b")
    return root


@pytest.fixture(scope="module")
def content(home: Path) -> Any:
    words = ("detect", home / "runs", "--detector", "feature_squeezing", "--weight", "1", "--home", home)
    return json.loads(medattack(*words, "--csv", home / "scores.csv", "--json").stdout)


def test_each_attack_stands_beside_clean_images_noise_and_one_that_knows_the_detector(content: Any) -> None:
    (detector,) = content["detectors"]
    assert detector["adaptive"]
    kinds = [(row["kind"], row["attack"]) for row in detector["rows"]]
    assert kinds == [
        ("clean", "clean"),
        ("noise", "noise"),
        ("attack", "pgd(steps=4)"),
        ("attack", "fgsm"),
        ("adaptive", "evading(pgd(steps=4))"),
        ("adaptive", "evading(pgd)"),  # one step cannot go around an alarm
    ]
    assert detector["calibration_patients"] == 6
    clean = detector["rows"][0]
    assert clean["alarms_0.1"] is None
    assert clean["alarms_0.14_low"] <= clean["alarms_0.14"] <= clean["alarms_0.14_high"]


def test_scores_of_every_patient_are_written(content: Any, home: Path) -> None:
    with (home / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * len(content["detectors"][0]["rows"])
    assert all(0 < float(row["p"]) <= 1 for row in rows)
    assert {row["detector"] for row in rows} == {"feature_squeezing"}


def test_stored_images_and_images_that_are_made_again_have_the_scores_of_the_run(content: Any, home: Path) -> None:
    """The Dice of what a detector was shown is that of the run's own rows."""
    from medseg_attack.runs.reading import find_runs, read_runs
    from medseg_attack.stats.scores import pooled, scored

    rows = read_runs(find_runs([home / "runs"]))
    cases = scored(pooled(rows, "patient"), "one").merge(
        rows.drop_duplicates("run")[["run", "attack", "role"]], on="run"
    )
    for label in ("pgd(steps=4)", "fgsm"):
        own = cases[(cases["attack"] == label)].groupby("group")["dice_adv"].mean().mean()
        (row,) = [row for row in content["detectors"][0]["rows"] if row["attack"] == label]
        assert row["dice"] == pytest.approx(own, abs=1e-6)


def test_the_table_fits_and_says_what_is_not_promised(home: Path) -> None:
    result = medattack("detect", home / "runs/a", "--home", home, "--non-adaptive")
    plain = " ".join(result.stdout.split())
    assert "entropy (non_adaptive) of" in plain
    assert "With fewer than 19 of them 5 % cannot be promised: the least is 14 %." in plain
    assert "non_adaptive: no attack of the table knows the detector." in plain
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_a_rate_that_the_patients_cannot_promise_is_refused(home: Path) -> None:
    result = medattack("detect", home / "runs/a", "--home", home, "--false-alarms", "0.05", code=2)
    assert "expected 19 calibration patients or more for 0.05 false alarms, got 6" in " ".join(result.stderr.split())


def test_patients_whom_the_detector_learned_from_are_no_test(home: Path) -> None:
    attack = ("attack", "--data", home / "data/p", "--model", home / "models/m", "--no-checks", "--home", home)
    medattack(*attack, "--attack", "fgsm", "--split", "val", "--limit", "4", "--out", home / "elsewhere")
    result = medattack("detect", home / "elsewhere", "--home", home, code=2)
    assert "expected a detector to be scored on other patients than it is fitted and calibrated on" in " ".join(
        result.stderr.split()
    )


def test_runs_of_two_models_are_refused(home: Path) -> None:
    train = (
        "train",
        "--data",
        home / "data/p",
        "--model",
        "unet_small(channels=(4, 8))",
        "--epochs",
        "1",
        "--seed",
        "1",
    )
    medattack(*train, "--home", home, "--out", home / "models/other")
    attack = ("attack", "--data", home / "data/p", "--model", home / "models/other", "--no-checks", "--home", home)
    medattack(*attack, "--attack", "fgsm", "--limit", "4", "--out", home / "another")
    result = medattack("detect", home / "runs/a", home / "another", "--home", home, code=2)
    assert "expected runs of one model for a detector, got several" in " ".join(result.stderr.split())
    result = medattack("detect", home / "models", "--home", home, code=2)
    assert "expected a run in" in " ".join(result.stderr.split())
