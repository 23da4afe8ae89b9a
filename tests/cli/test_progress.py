"""Progress off a terminal: a line per epoch of a training, and one per minute of anything."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medseg_attack.cli import terminal


def test_a_training_says_a_line_per_epoch(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "medseg_attack"]
    spec = "phantom(patients=4, slices=2, side=32)"
    subprocess.run([*words, "prepare", tmp_path / "scans", "--format", spec, "--out", tmp_path / "data"], check=True)
    train = [*words, "train", "--data", tmp_path / "data", "--epochs", "2", "--device", "cpu", "--out", tmp_path / "m"]
    said = subprocess.run(train, check=True, capture_output=True, text=True).stderr
    assert len(re.findall(r"^train: [12]/2, \d+ s left loss \d", said, re.M)) == 2


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
