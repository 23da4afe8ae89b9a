"""A few kills at random moments; `make kills` makes a hundred."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow  # each command has a test of its own that kills it at a chosen moment
def test_a_killed_command_started_again_leaves_what_a_quiet_one_leaves() -> None:
    words = [sys.executable, str(Path(__file__).with_name("kills.py")), "--kills", "4"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
