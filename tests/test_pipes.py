"""A pipe in place of a file that this package wrote is refused by its name: nobody opens it and waits."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.command import medattack

SMALL = ("--model", "unet_small(channels=(4, 8))", "--epochs", "1", "--device", "cpu")
ATTACK = ("attack", "--data", "data", "-m", "model", "--attack", "uap(epochs=1)", "--eps", "4/255", "--no-control")
COMMANDS = {
    "attack": (*ATTACK, "--no-checks", "--save-adversarial", "all", "--out", "run"),
    "evaluate": ("evaluate", "--data", "data", "-m", "model", "--out", "scores"),
    "train": ("train", "--data", "data", *SMALL, "--epochs", "2", "--init", "model", "--out", "other"),
    "train again": ("train", "--data", "data", *SMALL, "--out", "begun"),
    "prepare": ("prepare", "made", "--format", "phantom(patients=3, slices=2, side=16)", "--out", "data"),
    "verify": ("verify", "run"),
    "compare": ("compare", "run", "--deltas"),
}


READ = {
    "attack": ("model", "run"),
    "evaluate": ("data",),
    "train": ("model",),
    "train again": ("begun",),
    "prepare": ("data",),
    "verify": ("run",),
    "compare": ("run",),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, a model, a training that was interrupted and a run with its images."""
    folder = tmp_path_factory.mktemp("pipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        medattack(*COMMANDS["prepare"])
        medattack("train", "--data", "data", *SMALL, "--out", "model")
        shutil.copytree("model", "begun")
        Path("begun/card.json").unlink()
        Path("begun/weights.safetensors").rename("begun/state.safetensors")
        medattack(*COMMANDS["attack"])
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_waits_for_a_pipe(name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [home / folder for folder in READ[name]]
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path.relative_to(home) for path in paths]
    waited_for = []
    for file in {(file.parent, file.suffix): file for file in files}.values():  # one of each kind
        shutil.copytree(home, tmp_path / "home")
        monkeypatch.chdir(tmp_path / "home")
        file.unlink()
        os.mkfifo(file)
        writer = subprocess.Popen(["/bin/sh", "-c", f": > '{file}'"])  # it ends when somebody opens the pipe to read
        try:
            medattack_in_a_sentence(*COMMANDS[name])
            with contextlib.suppress(subprocess.TimeoutExpired):
                writer.wait(0.05)
                waited_for.append(file)
        finally:
            writer.kill()
            writer.wait()
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(tmp_path / "home")
    assert waited_for == []


def medattack_in_a_sentence(*words: object) -> None:
    """Runs a command that takes what it reads, or refuses it in a sentence."""
    from typer.testing import CliRunner

    from medseg_attack.cli import app

    result = CliRunner().invoke(app, [str(word) for word in words], env={"MEDATTACK_PROGRESS": "0"})
    assert result.exit_code in (0, 1, 2), result.output
    assert "Traceback" not in result.output
