"""The examples for clusters: run as far as this machine can, with the commands that they hold."""

import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from helpers.command import medattack

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "examples" / "cluster"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after the steps of the smoke job, whose own commands made it."""
    home = tmp_path_factory.mktemp("workspace")
    job = yaml.safe_load((CLUSTER / "smoke.yml").read_text())["jobs"]["smoke"]
    lines = [line for step in job["steps"] for line in step.get("run", "").splitlines()]
    commands = [words[1:] for words in map(shlex.split, lines) if words[:1] == ["medattack"]]
    assert [words[0] for words in commands] == ["prepare", "train", "attack", "compare"]
    before = os.getcwd()
    os.chdir(home)
    try:
        for words in commands:
            medattack(*words, *([] if words[0] == "compare" else ["--home", "workspace"]))
    finally:
        os.chdir(before)
    return home


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One with `medattack` on its path."""
    program = tmp_path / "bin" / "medattack"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m medseg_attack "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    path = os.pathsep.join((str(program.parent), os.environ["PATH"]))
    python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PATH": path, "PYTHONPATH": python_path, "MEDATTACK_PROGRESS": "0"}


def study(home: Path, folder: Path) -> Path:
    file = folder / "study.yaml"
    (model,) = (home / "workspace" / "models").iterdir()
    (data,) = (home / "workspace" / "data").iterdir()
    file.write_text(yaml.safe_dump({"models": [str(model)], "data": str(data), "split": "all", "eps": ["0.01"]}))
    return file


def test_the_smoke_job_passes(home: Path) -> None:
    assert len(list((home / "results").rglob("run.json"))) == 2


@pytest.mark.slow  # a process for each task
def test_the_tasks_of_the_job_array_complete_a_study(home: Path, environment: dict[str, str], tmp_path: Path) -> None:
    script = (CLUSTER / "study.sbatch").read_text()
    first, last = map(int, re.search(r"#SBATCH --array=(\d+)-(\d+)", script).groups())  # type: ignore[union-attr]
    assert (first, last) == (0, 15)
    out = tmp_path / "out"
    for task in range(2):
        facts = {"ID": task, "COUNT": 2, "MIN": 0, "MAX": 1, "STEP": 1}
        array = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in facts.items()}
        command = ["bash", CLUSTER / "study.sbatch", study(home, tmp_path), out]
        result = subprocess.run(command, env=environment | array, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert f"--shard {task}/2" in result.stderr
    assert "fgsm" in result.stdout
    assert len(list(out.rglob("run.json"))) == 2


@pytest.mark.slow
def test_the_script_for_ray_completes_a_study(home: Path, environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    command = ["bash", CLUSTER / "study_on_ray.sh", study(home, tmp_path), tmp_path / "out"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "finished" in result.stdout


@pytest.mark.parametrize("script", sorted(CLUSTER.glob("*.s*")), ids=lambda file: file.name)
def test_scripts_are_ones_that_bash_can_read(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("name", ["Dockerfile", "medattack.def"])
def test_images_install_extras_that_there_are(name: str) -> None:
    """No image is built here: that takes a registry."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (wanted,) = re.findall(r"/opt/medattack\[([\w,]+)\]", (CLUSTER / name).read_text())
    assert set(wanted.split(",")) <= set(extras)
