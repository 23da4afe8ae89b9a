"""No field beside the rows and scans of a run can be changed by hand without `medattack verify` saying so."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.command import medattack
from helpers.scans import write_uw
from typer.testing import CliRunner

from medseg_attack import registry
from medseg_attack.cli import app
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.models.checkpoints import save


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("records")
    medattack("prepare", write_uw(root / "scans"), "--format", "uw_madison", "--out", root / "data")
    data = open_prepared(root / "data")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = registry.build("unet_small(channels=(4, 8))", "model")(data.task)
    save(root / "model", model, {"label": "tiny", "spec": "unet_small(channels=(4, 8))"})
    words = ["attack", "--data", root / "data", "-m", root / "model", "--eps", "8/255", "--save-adversarial", "all"]
    medattack(*words, "--attack", "fgsm", "--no-checks", "--no-control", "--out", root / "runs")
    medattack("verify", root / "runs")
    return root / "runs"


def pick(runs: Path, pattern: str) -> Path:
    return min(runs.rglob(pattern))


def verify(runs: Path) -> str:
    return " ".join(medattack("verify", runs, code=1).stdout.split())


@pytest.mark.parametrize("pattern", ["run.json", "manifest.json", "*.png.json"])
def test_each_field_of_a_file_of_json_is_held(runs: Path, pattern: str, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    file = pick(tmp_path / "runs", pattern)
    content = json.loads(file.read_text())
    assert content["digest"]
    for key in content.keys() - {"digest", "files", "which"}:  # which the list of files is held to otherwise
        value = content[key]
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "another"
        file.write_text(json.dumps(content | {key: {"another": other} if isinstance(value, dict) else other}))
        result = CliRunner().invoke(app, ["verify", str(tmp_path / "runs")])
        assert result.exit_code in (1, 2), key  # a mismatch, or a field that is refused
        assert "Traceback" not in result.output
    file.write_text(json.dumps(content | {"more": 1}))
    assert "not as it was written" in verify(tmp_path / "runs")
    file.write_text(json.dumps({key: value for key, value in content.items() if key != "digest"}))
    medattack("verify", tmp_path / "runs")  # as an earlier version wrote it


@pytest.mark.parametrize("pattern", ["manifest.json", "*.png.json"])
def test_another_source_is_noticed_without_a_digest(runs: Path, pattern: str, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    file = pick(tmp_path / "runs", pattern)
    content = json.loads(file.read_text())
    del content["digest"]
    (content["files"][0] if pattern == "manifest.json" else content)["source"] = "another.png"
    file.write_text(json.dumps(content))
    assert "expected train/case" in verify(tmp_path / "runs")
    assert "got another.png" in verify(tmp_path / "runs")


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", 7), ("split", "val"), ("attacks", ["pgd"]), ("eps", ["1/255"]), ("limit", 3), ("control", True)],
)
def test_a_study_that_is_not_that_of_the_run_is_noticed(runs: Path, field: str, value: Any, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    study, identity = tmp_path / "runs" / "study.yaml", tmp_path / "runs" / "identity.json"
    said = yaml.safe_load(study.read_text())
    study.write_text(yaml.safe_dump(said | {field: value}))
    assert f"{field}: study.yaml says {value}" in verify(tmp_path / "runs")
    identity.write_text(json.dumps(json.loads(identity.read_text()) | {field: value}))
    if field in ("seed", "split"):  # what the run itself says, too
        assert f"{field}: {said[field]} in the run, {value} in identity.json" in verify(tmp_path / "runs")


def test_a_study_of_other_data_or_weights_is_noticed(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    identity = tmp_path / "runs" / "identity.json"
    content = json.loads(identity.read_text())
    identity.write_text(json.dumps(content | {"weights": ["a" * 64]}))
    assert "its weights are none of identity.json" in verify(tmp_path / "runs")
    identity.write_text(json.dumps(content | {"data": "a" * 64}))
    assert f"data: {content['data']} in the run" in verify(tmp_path / "runs")
