"""Commands that fail at their first files leave the disk as it was; interrupted ones leave what they go on from."""

import errno
import inspect
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.command import medattack
from helpers.dicoms import tiny_model

from medseg_attack.cli import app
from medseg_attack.data.prepared.reading import open_prepared

TINY = "unet_small(channels=(4, 8))"
SHORT = ("--device", "cpu", "--batch-size", "4")
COMMANDS: dict[str, tuple[str, ...]] = {
    "prepare": ("scans", "--format", "uw_madison"),
    "poison": ("data", "stamp(side=4)", "--rho", "0.5"),
    "train": ("--data", "data", "--model", TINY, "--epochs", "1", *SHORT),
    "extract": ("--victim", "model", "--data", "data", "--model", TINY, "--queries", "4", "--steps", "2", *SHORT),
    "attack": ("--data", "data", "--model", "model", "--attack", "fgsm", "--no-checks", "--no-control", *SHORT),
    "evaluate": ("--data", "data", "--model", "model", *SHORT),
    "defend": (
        *("guarded('model', [remap])", "--twin", "model", "--data", "data", "--against", "fgsm", "--steps", "1"),
        *("--queries", "2", "--limit", "1", *SHORT),
    ),
    "certify": ("--data", "data", "-m", "model", "--limit", "1", "--check", "0", *SHORT),
    "detect": ("runs", "--detector", "entropy", "--non-adaptive", *SHORT),
    "readers": ("RUN", "--trials", "4", "--device", "cpu"),
    "report": ("runs", "--worst", "0", "--device", "cpu"),
    "leaderboard": ("entries",),
}
SERIES = {"demo"}  # commands of this table, one after the other
LATER = ("prepare", "poison", "train", "readers")  # whose second file is of no use without those after it
ERRORS = {
    "a refusal of the system": OSError(errno.EIO, "Input/output error"),
    "a defect": ZeroDivisionError("never"),
    "an interruption": KeyboardInterrupt(),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    phantom = "phantom(patients=6, slices=2, side=24)"
    medattack("prepare", root / "scans", "--format", phantom, "--test", "0.4", "--folds", "2", "--out", root / "data")
    tiny_model(root / "model", open_prepared(root / "data"))
    attack = ("--data", root / "data", "--model", root / "model", "--attack", "fgsm", "--no-checks", "--device", "cpu")
    medattack("attack", *attack, "--save-adversarial", "all", "--home", root, "--out", root / "runs")
    medattack("report", root / "runs", "--entry", "--out", root / "entries")
    return root


def test_every_command_that_writes_a_folder_is_tried() -> None:
    bodies = {info.callback.__name__: info.callback for info in app.registered_commands if info.callback}
    writing = {name for name, body in bodies.items() if "out" in inspect.signature(body).parameters}
    assert writing - SERIES == {*COMMANDS}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_failure_at_the_start_leaves_nothing(
    command: str, kind: str, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("MEDATTACK_HOME", str(tmp_path / "home"))
    run = str(next((workspace / "runs").glob("*/*fgsm*")))
    out = tmp_path / "new" / "out"
    words = [command, *(run if word == "RUN" else word for word in COMMANDS[command]), "--out", out]
    replace, refused = os.replace, 2 if command in LATER else 1
    placed: list[Path] = []

    def failing(part: Any, path: Any) -> None:
        if out in Path(path).parents:
            placed.append(Path(path))
            if len(placed) == refused:
                raise ERRORS[kind]
        replace(part, path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", failing)
        medattack(*words, code=130 if kind == "an interruption" else 2)
    assert len(placed) >= refused
    if kind == "an interruption":
        medattack(*words)  # goes on, or begins anew
    else:
        assert not out.parent.exists(), [str(path) for path in out.parent.rglob("*")]
