"""Goals and least changes on the command line: what rows hold, what tables show, what is refused."""

import json
from pathlib import Path

import pandas as pd
import pytest
from helpers.command import medattack

from medseg_attack.stats.scores import aimed

SMALL = "unet_small(channels=(4, 8))"
NEAR = "by_pixels(share=0.9)"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("workspace")
    medattack("prepare", home / "scans", "--format", "phantom(patients=6, slices=4, side=32)", "--home", home)
    medattack("train", "--home", home, "--model", SMALL, "--epochs", "1", "--device", "cpu")
    return home


def test_success_stands_in_rows_and_tables(home: Path) -> None:
    out = home / "aims"
    words = [
        "attack",
        "--home",
        home,
        "-m",
        SMALL,
        "--no-checks",
        "--no-control",
        "--split",
        "all",
        "--limit",
        "4",
        "--out",
        out,
    ]
    attacks = [
        f"pgd(objective=toward(bce, erase('stomach'), {NEAR}), steps=3)",
        f"dag(goal=shift(dx_mm=5), success={NEAR}, steps=5)",
        f"dag(goal=another_patient, success={NEAR}, steps=5)",
        "fgsm",
    ]
    named = [word for attack in attacks for word in ("--attack", attack)]
    runs = json.loads(medattack(*words, *named, "--json").stdout)["runs"]
    assert [run["success"] is not None for run in runs] == [True, True, True, False]
    table = medattack(*words, *named).stdout
    assert max(map(len, table.splitlines())) <= 100
    for word in ("success", "truth", "least", "in brackets: of untouched images", "goal Dice: Dice with the goal"):
        assert word in " ".join(table.split())
    rows = pd.concat([pd.read_parquet(file) for file in sorted(out.rglob("00_pgd*/parts/*.parquet"))])
    assert {"success", "success_of_clean", "success_by_miou", "n_goal", "hit_goal", "hit_goal_of_clean"} <= set(rows)
    stomach = rows[rows["cls"] == "stomach"]
    assert (stomach["n_goal"] == 0).all()
    others = rows[rows["cls"] != "stomach"]
    assert (others["n_goal"] == others["n_target"]).all()  # the rest stays where it is
    assert (others["hit_goal_of_clean"] == others["hit_clean"]).all()
    assert (rows.groupby("case")["success"].nunique() == 1).all()
    side_by_side = medattack("compare", out, "--allow-partial").stdout
    assert "success" in side_by_side


def test_what_the_budget_cannot_hold_is_a_failure_in_the_rows(home: Path) -> None:
    out = home / "budgets"
    medattack(
        "attack",
        "--home",
        home,
        "-m",
        SMALL,
        "--no-checks",
        "--no-control",
        "--split",
        "all",
        "--limit",
        "3",
        "--out",
        out,
        "--attack",
        "dag(success=by_dice(below=0.05), steps=200, step_size=0.02)",
        "--eps",
        "0.99",
        "--eps",
        "0.001",
    )
    tight = pd.concat([pd.read_parquet(file) for file in sorted(out.rglob("*eps0.001/parts/*.parquet"))])
    wide = pd.concat([pd.read_parquet(file) for file in sorted(out.rglob("*eps0.99/parts/*.parquet"))])
    lost = wide.set_index(["case", "cls"])["success_of_clean"] == 0
    assert lost.any()
    tight = tight.set_index(["case", "cls"])[lost]
    assert (tight["success"] == 0).all()
    assert (tight["size"] == 0).all()
    assert (tight["n_adv"] == tight["n_clean"]).all()
    assert (wide.groupby("case")["forwards"].first() > 1).all()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("dag(goal=erase('liver'))", "to name an organ of"),
        ("pgd(objective=toward(bce, swap('stomach', 'spleen')))", "got 'spleen'"),
        ("dag(goal=mask('nowhere.npy'))", "expected a mask in nowhere.npy, got no file"),
        ("alma_prox(l2(1.0))", "a ball of linf"),
    ],
)
def test_what_is_not_there_is_told_before_anything_is_written(home: Path, attack: str, message: str) -> None:
    out = home / "refused"
    result = medattack("attack", "--home", home, "-m", SMALL, "--attack", attack, "--out", out, code=2)
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    "attack",
    [
        "pgd(steps=3, objective=toward(bce, erase('stomach')))",
        "apgd(steps=3, objective=toward(masked_bce, shift(dx_mm=5)))",
        "igsm(steps=3, goal=grow(mm=2))",
        "best_of((pgd(steps=2, objective=toward(bce, grow(mm=2))), pgd(steps=3, objective=toward(bce, grow(mm=2)))))",
    ],
)
def test_goals_of_an_image_stand_the_checks_and_are_scored(home: Path, tmp_path: Path, attack: str) -> None:
    """As typed: with the checks before and after a run, which watch attacks on cases of their own."""
    medattack(
        "attack",
        "--home",
        home,
        "-m",
        SMALL,
        "--limit",
        "3",
        "--attack",
        attack,
        "--eps",
        "8/255",
        "--out",
        tmp_path / "run",
    )
    (run,) = (part.parent for part in tmp_path.rglob("parts") if "noise" not in part.parent.name)
    rows = pd.concat([pd.read_parquet(file) for file in run.rglob("*.parquet")])
    assert {"success", "n_goal", "hit_goal"} <= set(rows.columns)
    flags = json.loads((run / "run.json").read_text())["flags"]
    assert not {"MA006", "MA007", "MA010", "MA023"} & {flag["code"] for flag in flags}


def test_goals_and_criteria_are_listed() -> None:
    goals = {row["name"] for row in json.loads(medattack("ls", "goals", "--json").stdout)}
    assert goals == {
        *("all_background", "another_patient", "dissolve", "erase", "grow", "mask", "shift", "shrink", "swap")
    }
    rules = {row["name"] for row in json.loads(medattack("ls", "criteria", "--json").stdout)}
    assert rules == {"by_dice", "by_miou", "by_pixels"}


def test_least_changes_are_those_of_successes() -> None:
    rows = pd.DataFrame(
        [
            (case, "p", case, cls, success, before, success * (case != "d"), size, goal, adv, hit)
            for case, success, before, size in (("a", 1, 0, 0.1), ("b", 0, 0, 0.0), ("c", 1, 1, 0.0), ("d", 1, 0, 0.4))
            for cls, goal, adv, hit in (("x", 4, 4, 3), ("y", 0, 0, 0))
        ],
        columns=[
            "case",
            "group",
            "volume",
            "cls",
            "success",
            "success_of_clean",
            "success_on_truth",
            "size",
            "n_goal",
            "n_adv",
            "hit_goal",
        ],
    )
    rates = aimed(rows, "slice")
    assert rates["success"] == 0.75
    assert rates["success_of_clean"] == 0.25
    assert rates["least"] == 0.25  # c met it untouched
    assert rates["least_mean"] == 0.25
    assert rates["success_on_truth"] == 0.5
    assert rates["goal_dice"] == 0.75  # y is in neither mask
    assert pd.isna(aimed(rows.drop(columns="success"), "slice")["success"])
