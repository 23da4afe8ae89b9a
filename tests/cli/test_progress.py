"""Progress off a terminal: a line per epoch of a training, and one per minute of anything."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.command import medattack
from helpers.sources import write_pictures

from medseg_attack.cli import terminal


def test_a_training_says_a_line_per_epoch(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "medseg_attack"]
    spec = "phantom(patients=4, slices=2, side=32)"
    subprocess.run([*words, "prepare", tmp_path / "scans", "--format", spec, "--out", tmp_path / "data"], check=True)
    train = [*words, "train", "--data", tmp_path / "data", "--epochs", "2", "--device", "cpu", "--out", tmp_path / "m"]
    train += ["--model", "unet_small(channels=(4, 8))"]
    said = subprocess.run(train, check=True, capture_output=True, text=True).stderr
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
    monkeypatch.setattr(terminal, "MINUTE", 0.05)
    with terminal.progress("attack", 2) as advance:
        time.sleep(0.2)
        advance(1)
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert re.match(r"attack: 0/2, after 0 s", lines[0])
    assert re.match(r"attack: 1/2, 0 s left", lines[-1])
    time.sleep(0.1)
    assert not capsys.readouterr().err  # the clock ends with the work
