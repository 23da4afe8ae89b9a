"""What is printed as the next command can be typed into a shell, whatever folders and files are called."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers.command import medattack


def next_words(result: Any) -> list[str]:
    """The words that a shell makes of the last line, without "Next:"."""
    label, *words = shlex.split(result.stderr.splitlines()[-1])
    assert label == "Next:"
    return words


@pytest.mark.parametrize("name", ["net.py", "a net.py", "it's (1).py", '$(touch x);"y".py'])
def test_files_that_new_writes(name: str, tmp_path: Path) -> None:
    path = {what: tmp_path / what / name for what in ("study", "attack", "network")}
    words = {what: next_words(medattack("new", what, file)) for what, file in path.items()}
    spec = repr(f"{path['network']}:build")
    assert words["study"] == ["medattack", "attack", "--config", str(path["study"]), "--plan"]
    assert words["attack"] == ["python", str(path["attack"])]
    assert words["network"] == ["medattack", "doctor", "--model", f"own({spec})"]


def test_folders_of_prepared_and_of_poisoned_data(tmp_path: Path) -> None:
    data, poisoned = tmp_path / "my data", tmp_path / "x; y's"
    prepared = medattack("prepare", tmp_path / "scans", "--format", "phantom(patients=8)", "--out", data)
    assert next_words(prepared) == ["medattack", "train", "--data", str(data), "--model", "unet_small"]
    result = medattack("poison", data, "relabel(shrink(1))", "--rho", "0.5", "--out", poisoned)
    assert next_words(result) == ["medattack", "train", "--data", str(poisoned), "--model", "unet_small"]
