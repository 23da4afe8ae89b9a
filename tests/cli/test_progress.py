"""Progress off a terminal: a line per epoch of a training, and one per minute of anything."""

import re
import time
from pathlib import Path

import pytest
from helpers.bright import write_bright
from helpers.command import medattack
from helpers.sources import write_pictures
from typer.testing import CliRunner

from medseg_attack.cli import app, progress, terminal
from medseg_attack.storage.stages import begin_stage, listening


def test_a_training_says_a_line_per_epoch(tmp_path: Path) -> None:
    spec = "phantom(patients=4, slices=2, side=32)"
    medattack("prepare", tmp_path / "scans", "--format", spec, "--out", tmp_path / "data")
    train = ["train", "--data", tmp_path / "data", "--epochs", "2", "--device", "cpu", "--out", tmp_path / "m"]
    train += ["--model", "unet_small(channels=(4, 8))"]
    said = CliRunner().invoke(app, list(map(str, train))).stderr
    assert len(re.findall(r"^train: [12]/2, \d+ s left loss \d", said, re.M)) == 2


def test_a_training_shows_classes_in_the_order_of_the_data_and_its_folder_whole(tmp_path: Path) -> None:
    labels = "ventricle=255,artery=7"
    data, long = tmp_path / "data", tmp_path / ("a-long-name-of-a-folder-" * 5)
    medattack("prepare", write_pictures(tmp_path / "scans"), "--format", "folder", "--labels", labels, "--out", data)
    shown = medattack("train", "--data", data, "--epochs", "1", "--device", "cpu", "--out", long).stdout
    assert re.findall("validation Dice, (.+?)  ", shown) == ["ventricle", "artery", "mean"]
    assert str(long) in shown


def test_a_long_piece_says_a_line_per_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "MINUTE", 0.05)
    with progress.progress_bar("attack", 2) as advance:
        time.sleep(0.2)
        advance(1)
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert re.match(r"attack: 0/2, after 0 s", lines[0])
    assert re.match(r"attack: 1/2, 0 s left", lines[-1])
    time.sleep(0.1)
    assert not capsys.readouterr().err  # the clock ends with the work


def test_what_a_piece_said_is_not_said_again_by_the_line_of_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "MINUTE", 0.05)
    with progress.progress_bar("train", 9, line_per_piece=True) as advance:
        for n in (1, 2):
            advance(1, f"loss {n}")
            time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("left ")[2] for line in lines if "loss" in line] == ["loss 1", "loss 2"]
    assert re.fullmatch(r"train: 2/9, \d+ s left", lines[-1])


@pytest.mark.parametrize("shown", ["always", "never", "by the environment", "of others", "by the work itself"])
def test_a_command_that_shows_no_progress_says_a_line_per_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shown: str
) -> None:
    said: list[str] = []
    show_bar = progress.progress_bar

    def look(progress: bool = True) -> None:
        begin_stage("looking at scans")
        with show_bar("scans", 2, show=shown == "by the work itself"):
            capsys.readouterr()
            time.sleep(0.3)
            said.extend(capsys.readouterr().err.splitlines())

    monkeypatch.setattr(progress, "MINUTE", 0.05)
    monkeypatch.setenv("MEDATTACK_PROGRESS", "off" if shown == "by the environment" else "1")
    look.__name__ = "watch" if shown == "of others" else "look"
    terminal.command(look)(**({"progress": False} if shown == "never" else {}))
    told = {"always": {"look: after 0 s looking at scans"}, "by the work itself": {"scans: 0/2, after 0 s"}}
    assert set(said) == told.get(shown, set())


def test_doctor_says_what_it_is_at(tmp_path: Path) -> None:
    write_bright(tmp_path / "scans")
    medattack("prepare", tmp_path / "scans", "--format", "decathlon", "--home", tmp_path, "--test", "0.4")
    told: list[str] = []
    with listening(told.append):
        medattack("doctor", "--home", tmp_path, "--model", f"own('{tmp_path}/scans/nets.py:Net')")
        medattack("doctor", "--home", tmp_path, "--data", *(tmp_path / "data").iterdir())
    assert told[:2] == ["asking the model about 2 cases", "checking the model"]
    assert told[2].startswith("checking the model: MA")
    assert told[-1] == "reading all arrays"


def test_what_comes_before_the_first_case_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bright(tmp_path / "scans")
    home = ["--home", tmp_path]
    medattack("prepare", tmp_path / "scans", "--format", "decathlon", *home, "--test", "0.4")
    network = f"own('{tmp_path}/scans/nets.py:Net')"
    told: list[str] = []
    with listening(told.append):
        medattack("attack", *home, "--model", network, "--attack", "pgd(steps=2)", "--attack", "uap", "--no-control")
    first = [name.partition(":")[0].partition("(")[0] for name in dict.fromkeys(told)]
    stages = ["loading own", "fitting uap", "checking the model", "trying attacks on a few cases", "attacking"]
    assert list(dict.fromkeys(first)) == stages
    told.clear()
    with listening(told.append):
        copy = ["--out", tmp_path / "copy", "--model", "unet_small(channels=(4, 8))", "--steps", "2"]
        medattack("extract", "--victim", network, *home, *copy, "--queries", "2", "--device", "cpu")
    assert told == ["asking the victim about 2 cases", "training the copy"]
    told.clear()
    with listening(told.append):
        certificate = ["--certificate", "expected_dice(sigma=0.1, draws=100)", "--radius", "0.01", "--check", "1"]
        medattack("certify", *home, "--model", network, *certificate, "--limit", "2")
    assert [name.partition(" ")[0] for name in told][:3] == ["loading", "bounding", "attacking"]
    told.clear()
    with listening(told.append):
        medattack("train", *home, "--model", "unet_small(channels=(4, 8))", "--epochs", "2", "--device", "cpu")
    assert told == ["reading training scans", "training the first epoch", "validating the first epoch"]
    told.clear()
    with listening(told.append):
        medattack("detect", tmp_path / "runs", *home, "--trust", "--weight", "1", "--device", "cpu")
    detecting = ["fitting on training patients", "preparing the attacks", "scoring clean", "scoring noise"]
    assert list(dict.fromkeys(told))[:4] == detecting
    monkeypatch.setattr(progress, "MINUTE", 0.05)
    capsys.readouterr()
    with progress.progress_bar("attack", 2) as advance:
        begin_stage("checking the model")
        time.sleep(0.2)
        advance(1)
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "attack: 0/2, after 0 s checking the model"
    assert lines[-1] == "attack: 1/2, 0 s left"
