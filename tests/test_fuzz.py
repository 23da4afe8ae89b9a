"""60 damaged inputs are answered in a sentence; `make fuzz N=5000` tries more."""

import os
import subprocess
import sys
from pathlib import Path


def test_damaged_inputs_of_every_kind_end_in_a_sentence() -> None:
    fuzz = Path(__file__).with_name("fuzz.py")
    words = [sys.executable, str(fuzz), "60"]
    environment = os.environ | {"PYTHONPATH": str(fuzz.parents[1])}
    result = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr[-2000:]}"
    assert "60 inputs, 0 problems" in result.stdout
