"""The files that `medattack new` writes work as they are, and overwrite nothing."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import medattack

import medseg_attack
from medseg_attack import registry
from medseg_attack.registry.table import entries, known_as
from medseg_attack.runs.grid import cells
from medseg_attack.runs.study import Study, read_study
from medseg_attack.types import Task

ROOT = Path(medseg_attack.__file__).parents[1]


def test_a_study_is_one_and_names_every_field(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    assert "medattack attack --config" in medattack("new", "study", file).stderr
    study = read_study(file, {})
    assert len(cells(study)) == 8  # three attacks and the noise of their ball, at two budgets
    text = file.read_text()
    assert "--config mine.yaml" in text
    assert {name for name in Study.model_fields if f"{name}:" in text} >= {*Study.model_fields} - {"fold", "native"}
    (tmp_path / "all.yaml").write_text(text.replace("\n# ", "\n").partition("\n\n")[2])
    assert read_study(tmp_path / "all.yaml", {}).steps == 20  # the fields in comments are fields, too


def test_a_network_is_built_for_a_task(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    medattack("new", "network", file)
    task = Task("toy", ("background", "lv"), exclusive=True)
    model = registry.build(f"own('{file}:build')", "model")(task)
    assert model.net is not None
    assert "own('net.py:build'" in file.read_text()


def test_an_attack_runs_by_itself_and_harms(tmp_path: Path) -> None:
    medattack("new", "attack", tmp_path / "mine.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    code = [sys.executable, "mine.py"]
    output = subprocess.run(code, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert output.startswith("harm [1.0, 1.0] size [0.06")


def test_an_attack_has_a_name_in_specs(tmp_path: Path) -> None:
    medattack("new", "attack", tmp_path / "mine.py")
    attack = runpy.run_path(str(tmp_path / "mine.py"))["MyAttack"]
    try:
        assert registry.build("my_attack(linf(4/255), steps=3)", "attack").steps == 3
    finally:
        del entries["my_attack"], known_as[attack]


@pytest.mark.parametrize("what", ["study", "attack", "network"])
def test_nothing_is_overwritten(what: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    assert "expected a file that is not there yet" in medattack("new", what, tmp_path / "mine", code=2).stderr
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(("what", "name"), [("study", "study.yaml"), ("attack", "my_attack.py"), ("network", "net.py")])
def test_without_a_name_it_has_its_own(what: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    medattack("new", what)
    assert [path.name for path in tmp_path.iterdir()] == [name]
