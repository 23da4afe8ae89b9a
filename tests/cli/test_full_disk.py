"""Disks that are really full, at several moments of each command: an error in a sentence, and nothing lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.command import medattack
from helpers.dicoms import tiny_model
from helpers.full_disk import COMMANDS
from helpers.sources import write_pictures

from medseg_attack.data.prepared.reading import open_prepared

MOUNT = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=4k small "$0"']


def may_mount(folder: Path) -> bool:
    return bool(shutil.which("unshare")) and not subprocess.run([*MOUNT, folder], capture_output=True).returncode


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What came of each command on disks of several sizes; one process for all, since each would load torch."""
    root = tmp_path_factory.mktemp("workspace")
    if not may_mount(root):
        pytest.skip("this machine does not let a test mount a small disk")
    medattack("prepare", write_pictures(root / "source"), "--format", "folder", "--out", root / "data")
    tiny_model(root / "model", open_prepared(root / "data"))
    words = "--data", root / "data", "-m", root / "model", "--no-checks", "--no-control"
    medattack("attack", *words, "--out", root / "out")
    line = ["unshare", "-m", sys.executable, "-m", "helpers.full_disk", str(root)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2]), *sys.path])
    result = subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})
    assert result.returncode == 0, result.stderr
    return list(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_an_error_and_the_same_command_goes_on_when_there_is_room(
    command: str, results: list[dict[str, Any]]
) -> None:
    of_command = [result for result in results if result["command"] == command]
    assert any(result["code"] == 2 for result in of_command)
    for result in of_command:
        assert result["code"] in (0, 2), result
        assert result["code"] == 2 or result["is_whole"], result
        assert result["code"] == 0 or "No space left on device" in " ".join(result["stderr"].split()), result
        assert "Traceback" not in result["stderr"], result
        assert "defect" not in result["stderr"], result
        assert result["parts"] == [], result
        assert (result["code_again"], result["is_whole_again"]) == (0, True), result
