"""Flags on the command line: below the table, in run.json, in --json; switched off by --no-checks."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from helpers.command import medattack
from helpers.runs import dice_of, write_run

from medseg_attack import __version__
from medseg_attack.checks.flags import Finding
from medseg_attack.checks.rows.runs import ALL_ATTACKS
from medseg_attack.checks.rows.strength import check_single_steps_alone
from medseg_attack.checks.stored import of_stored, records_of_stored
from medseg_attack.models import linear


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a small phantom and the linear model, of which nothing was learned."""
    from medseg_attack.data.prepared.reading import open_prepared
    from medseg_attack.models import checkpoints
    from medseg_attack.registry import build

    home = tmp_path_factory.mktemp("flags")
    medattack("prepare", home / "scans", "--format", "phantom(patients=6, slices=3, side=32)", "--home", home)
    task = open_prepared(home / "data" / "phantom").task
    for spec in ("oracle", "blurred_oracle"):
        folder = home / "models" / spec
        folder.mkdir(parents=True)
        checkpoints.save(folder, build(spec, "model")(task), {"label": spec, "spec": spec})
    return home


def attack(home: Path, out: Path, *more: str, model: str = "oracle", code: int = 0) -> Any:
    return medattack(
        "attack",
        "--home",
        home,
        "--model",
        home / "models" / model,
        "--eps",
        "8/255",
        "--out",
        out,
        "--split",
        "all",
        *more,
        code=code,
    )


def test_a_finding_on_all_attacks_says_of_which_study_where_there_are_several(tmp_path: Path) -> None:
    """Single steps in one study, forty in another: "only single-step attacks were run" is true of the first alone."""
    record = Finding(check_single_steps_alone.flag, ALL_ATTACKS, "1 gradient per case").record()
    one = write_run(tmp_path / "one", dice_of(0, 4), checks=True, flags=[record])
    two = write_run(tmp_path / "two", dice_of(1, 4), checks=True, flags=[])
    other = write_run(tmp_path / "two", dice_of(1, 4), model="fpn", checks=True, flags=[record])
    models = {str(one): "unet", str(two): "unet", str(other): "fpn"}
    about = {run: [finding.about for finding in found] for run, found in of_stored(models, "volume").items()}
    assert about == {str(one): ["unet, all attacks of one"], str(two): [], str(other): ["fpn, all attacks"]}
    records = records_of_stored([one, two, other], "volume")
    assert [each["about"] for each in records] == ["unet, all attacks of one", "fpn, all attacks"]
    assert [each["about"] for each in records_of_stored([one], "volume")] == ["unet, all attacks"]


def test_flags_are_printed_stored_and_part_of_the_json(home: Path, tmp_path: Path) -> None:
    printed = attack(home, tmp_path / "run").stdout
    assert max(map(len, printed.splitlines())) <= 100
    assert "MA014 invalid - clean images: clean Dice is implausible" in " ".join(printed.split())
    assert "MA027 upper bound on robustness" in printed
    flags = json.loads(attack(home, tmp_path / "run", "--json").stdout)["flags"]
    assert {"code", "verdict", "title", "about", "seen", "todo", "model", "model_id", "runs"} == set(flags[0])
    compared = medattack("compare", tmp_path / "run").stdout
    assert " ".join(compared.split()).count("MA014 invalid - oracle, clean images: clean Dice is implausible") == 1
    stored = json.loads(medattack("compare", tmp_path / "run", "--json").stdout)["flags"]
    assert [one["code"] for one in stored] == [one["code"] for one in flags]
    for form in ("--markdown", "--latex"):
        assert medattack("compare", tmp_path / "run", form).stdout.count("MA014 invalid - oracle") == 1
    headers = [json.loads(file.read_text()) for file in (tmp_path / "run").rglob("run.json")]
    assert len(headers) == 2
    for header in headers:
        assert {one["code"] for one in header["flags"]} <= {one["code"] for one in flags}
        assert "MA014" in {one["code"] for one in header["flags"]}


def test_the_look_before_is_taken_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = attack(home, tmp_path / "run").stdout
    (kept,) = (tmp_path / "run").rglob("checks.json")
    assert 2 <= len(json.loads(kept.read_text())["cases"]) <= 4
    monkeypatch.setattr("medseg_attack.evaluation.studies.examining.preflight", None)
    assert attack(home, tmp_path / "run").stdout == first


def test_no_checks_looks_at_nothing(home: Path, tmp_path: Path) -> None:
    printed = attack(home, tmp_path / "run", "--no-checks").stdout
    assert "MA0" not in printed
    assert not list((tmp_path / "run").rglob("checks.json"))
    headers = [json.loads(file.read_text()) for file in (tmp_path / "run").rglob("run.json")]
    assert all("flags" not in header and header["checks"] is False for header in headers)
    runs = json.loads(medattack("compare", tmp_path / "run", "--json").stdout)["runs"]
    assert [run["checks"] for run in runs] == [False, False]


def test_flags_that_were_raised_stay_where_the_same_run_is_shown_without_checks(home: Path, tmp_path: Path) -> None:
    attack(home, tmp_path / "run")
    attack(home, tmp_path / "run", "--no-checks")
    headers = [json.loads(file.read_text()) for file in (tmp_path / "run").rglob("run.json")]
    assert all(header["checks"] and header["flags"] for header in headers)


def test_the_json_of_attack_and_compare_names_runs_and_models_alike(home: Path, tmp_path: Path) -> None:
    """Two models of one label are told apart by their ids, in runs, in flags and in run.json."""
    same = home / "models" / "same"
    if not same.exists():
        shutil.copytree(home / "models" / "blurred_oracle", same)
        card = json.loads((same / "card.json").read_text())
        (same / "card.json").write_text(json.dumps(card | {"label": "oracle"}))
    of_attack = json.loads(attack(home, tmp_path / "run", "--model", str(same), "--json").stdout)
    of_compare = json.loads(medattack("compare", tmp_path / "run", "--json").stdout)
    headers = [json.loads(file.read_text()) for file in (tmp_path / "run").rglob("run.json")]
    ids = {(run["model"], run["model_id"], run["run_id"]) for run in of_attack["runs"]}
    assert ids == {(run["model"], run["model_id"], run["run_id"]) for run in of_compare["runs"]}
    assert ids == {(header["model"], header["model_id"], header["run_id"]) for header in headers}
    assert len(ids) == 4
    assert len({model_id for _, model_id, _ in ids}) == 2
    for flags in (of_attack["flags"], of_compare["flags"]):
        assert flags
        for flag in flags:
            assert {(flag["model"], flag["model_id"], run) for run in flag["runs"]} <= ids
    key = ("code", "model_id", "seen")
    assert {tuple(flag[k] for k in key) for flag in of_attack["flags"]} == {
        tuple(flag[k] for k in key) for flag in of_compare["flags"]
    }


def test_a_header_says_when_where_and_with_which_code_it_was_computed(home: Path, tmp_path: Path) -> None:
    attack(home, tmp_path / "run")
    (first, _) = sorted((tmp_path / "run").rglob("run.json"))
    header = json.loads(first.read_text())
    facts = header["provenance"]
    assert datetime.fromisoformat(facts["date"]).tzinfo is not None
    assert (facts["host"], facts["version"]) == (platform.node(), __version__)
    if (Path(__file__).parents[2] / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}\+?", facts["commit"])
    first.write_text(json.dumps(header | {"provenance": facts | {"host": "elsewhere"}, "batch_size": 3}))
    attack(home, tmp_path / "run")  # computes nothing, and claims nothing
    again = json.loads(first.read_text())
    assert (again["provenance"]["host"], again["batch_size"]) == ("elsewhere", 3)


def test_the_rows_are_the_same_with_and_without(home: Path, tmp_path: Path) -> None:
    import pandas as pd

    for name, more in (("with", ()), ("without", ("--no-checks",))):
        attack(home, tmp_path / name, "--attack", "pgd(steps=3)", *more)
    one, two = (
        [pd.read_parquet(file) for file in sorted((tmp_path / name).rglob("*.parquet"))] for name in ("with", "without")
    )
    assert len(one) == len(two) > 0
    for left, right in zip(one, two, strict=True):
        pd.testing.assert_frame_equal(left, right, check_exact=True)


def test_a_quantised_model_is_flagged_where_the_table_shows_no_drop(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = linear._Oracle.forward
    monkeypatch.setattr(linear._Oracle, "forward", lambda self, image: real(self, (image * 7).round() / 7))
    content = json.loads(attack(home, tmp_path / "run", "--json", "--no-control").stdout)
    (run,) = content["runs"]
    assert run["drop"] == 0
    assert {"MA001", "MA020", "MA021"} <= {one["code"] for one in content["flags"]}


def test_a_model_without_gradients_is_refused_in_a_sentence(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = linear._Oracle.forward
    monkeypatch.setattr(linear._Oracle, "forward", lambda self, image: real(self, image.detach()))
    result = attack(home, tmp_path / "run", code=2)
    assert "(MA002); remove detach()" in " ".join(result.stderr.split())
    assert not list(tmp_path.rglob("*.parquet"))


def test_every_model_has_its_own_flags(home: Path, tmp_path: Path) -> None:
    words = ["--model", str(home / "models" / "blurred_oracle"), "--json"]
    flags = json.loads(attack(home, tmp_path / "run", *words).stdout)["flags"]
    assert {one["model"] for one in flags} == {"oracle", "blurred_oracle"}


def test_what_reads_rows_needs_no_torch() -> None:
    loaded = "import sys, medseg_attack.checks.stored; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], env=os.environ.copy(), check=False).returncode == 0


@pytest.mark.parametrize(
    ("val_dice", "mean"),
    [({"large_bowel": None, "small_bowel": 0.5, "stomach": 0.7}, 0.6), ({"stomach": None}, None), (None, None)],
)
def test_an_organ_that_no_validation_patient_has_is_left_out_of_the_mean(
    home: Path, tmp_path: Path, val_dice: Any, mean: float | None
) -> None:
    model = shutil.copytree(home / "models" / "oracle", tmp_path / "model")
    card = json.loads((model / "card.json").read_text())
    (model / "card.json").write_text(json.dumps(card | {"val_dice": val_dice}))
    words = ["--home", home, "--model", model, "--eps", "8/255", "--out", tmp_path / "run", "--limit", 2]
    medattack("attack", *words)
    headers = [json.loads(file.read_text()) for file in (tmp_path / "run").rglob("run.json")]
    assert [header["val_dice"] for header in headers] == [mean if mean is None else pytest.approx(mean)] * 2
