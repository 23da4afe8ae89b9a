"""`medattack defend`: a defence that hides its gradient is caught, and the table says so in words."""

import json
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.command import medattack, next_words
from helpers.killed import command_killed_at_file, killed
from helpers.pages import chart_points, nan, page_of, section, tables

from medseg_attack.report.defences import LEVELS
from medseg_attack.report.sheet import number, signed

QUANTISED = "guarded('unet_small', [bit_depth(bits=2)])"
SHORT = ("--steps", "6", "--queries", "60", "--limit", "24")
SUITE = ("--against", "pgd(steps=6, objective=soft_dice)", "--eps", "30/255", *SHORT)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("defend")
    phantom = "phantom(patients=16, slices=3, side=32)"
    medattack("prepare", root / "scans", "--format", phantom, "--test", "0.5", "--out", root / "data/p")
    train = ("train", "--data", root / "data/p", "--model", "unet_small", "--epochs", "20", "--lr", "3e-3")
    medattack(*train, "--home", root, "--out", root / "models/m")
    return root


@pytest.fixture(scope="module")
def trial(home: Path) -> Any:
    """Shard by shard, as on two machines; the second prints."""
    words = ("defend", QUANTISED, "guarded('unet_small', [remap])", *SUITE, "--home", home, "--out", home / "trial")
    first = json.loads(medattack(*words, "--shard", "0/2", "--json").stdout)
    assert first["finished"] is False
    medattack(*words, "--shard", "1/2")
    return medattack(*words, "--json"), medattack(*words)


def test_a_defence_that_hides_its_gradient_helps_only_against_attacks_that_do_not_know_it(trial: Any) -> None:
    content = json.loads(trial[0].stdout)
    (group,) = content["trials"]
    rows = {row["model"]: row for row in group["models"] if row["organ"] == "mean"}
    row = rows["guarded('unet_small', layers=(bit_depth(bits=2),))"]
    assert row["patients"] >= 6
    assert row["native"] - row["adaptive"] > 0.1
    assert row["worst"] <= min(row["native"], row["adaptive"], row["transfer"], row["queries"]) + 1e-9
    assert row["verdict"] == "helps only against attacks that do not know it"
    assert any(flag["code"] == "MA038" for flag in group["flags"])
    other = rows["guarded('unet_small', layers=(remap,))"]
    assert other["verdict"] in ("does not help", f"not decided with {row['patients']} patients")
    assert rows["unet_small"]["is_twin"]


def test_the_tables_fit_100_columns_one_for_each_organ(trial: Any) -> None:
    text = trial[1].stdout
    assert max(map(len, text.splitlines())) <= 100
    for heading in ("Mean over organs", "large bowel", "stomach"):
        assert heading.replace(" ", "_") in text or heading in text
    plain = " ".join(text.split())
    assert "undefended" in plain
    assert "guarded('unet_small', layers=(bit_depth(bits=2),)): helps only against attacks that do not know" in plain
    assert "passes for an answer" in plain
    assert "verdict" in plain


def test_the_next_command_writes_the_page(home: Path, trial: Any, tmp_path: Path) -> None:
    program, *words = next_words(trial[1])
    assert (program, words) == ("medattack", ["report", str(home / "trial"), "--allow-partial", "--home", str(home)])
    medattack(*words, "--worst", "0", "--out", tmp_path)


def test_the_runs_are_ordinary_ones(home: Path, trial: Any) -> None:
    table = medattack("compare", home / "trial/adaptive", "--allow-partial", "--json").stdout
    attacks = {run["attack"] for run in json.loads(table)["runs"]}
    assert any(attack.startswith("bpda(pgd(") for attack in attacks)
    parts = {"native", "adaptive", "harder", "transfer", "queries"}
    assert {path.name for path in (home / "trial").iterdir()} == parts


def test_the_suite_runs_once_on_models_that_declare_nothing_and_counts_as_both(home: Path, trial: Any) -> None:
    (group,) = json.loads(trial[0].stdout)["trials"]
    again = {header_of(file)["model"] for file in (home / "trial/adaptive").rglob("run.json")}
    assert again == {"guarded('unet_small', layers=(bit_depth(bits=2),))"}
    assert {header_of(file)["model"] for file in (home / "trial/harder").rglob("run.json")} == {
        row["model"] for row in group["models"]
    }
    for row in group["models"]:
        if row["model"] not in again:
            assert row["adaptive"] <= row["native"] + 1e-9


def header_of(file: Path) -> Any:
    return json.loads(file.read_text())


def test_a_plan_of_a_trial_shows_each_run_by_its_part_and_writes_nothing(home: Path, tmp_path: Path) -> None:
    words = ("defend", QUANTISED, *SUITE, "--home", home, "--out", tmp_path / "trial", "--plan")
    content = json.loads(medattack(*words, "--json").stdout)
    passes = {(run["part"], run["model"]): run["case_forwards"] for run in content["runs"]}
    parts = ("native", "adaptive", "harder", "transfer", "queries")
    assert {part for part, _ in passes} == set(parts)
    assert passes["queries", "unet_small"] == 60
    assert {model for part, model in passes if part == "adaptive"} == {content["runs"][-1]["model"]}
    assert content["cases"] == 24
    of_runs = sum(run["seconds"] for run in content["runs"])
    assert content["seconds"] == pytest.approx(of_runs + content["check_seconds"])
    shown = medattack(*words).stdout
    assert [line.strip() for line in shown.splitlines() if line.strip() in parts] == list(parts)
    assert "…" not in shown
    assert not (tmp_path / "trial").exists()


def test_the_page_has_the_numbers_of_the_trial(home: Path, trial: Any, tmp_path: Path) -> None:
    rows = json.loads(trial[0].stdout)["trials"][0]["models"]
    page = page_of(tmp_path, home / "trial", "--allow-partial")
    text = section(page, "defences")
    (points,) = chart_points(page)
    kind_of = {words: kind for kind, words in LEVELS.items()}
    means = {row["model"]: row for row in rows if row["organ"] == "mean"}
    assert len(points) == len(means) * len(LEVELS)
    for point in points:
        row, kind = means[point["model"]], kind_of[point["level"]]
        assert [point[name] for name in ("dice", "low", "high")] == [row[kind], row[f"{kind}_low"], row[f"{kind}_high"]]
    organs = list(dict.fromkeys(row["organ"] for row in rows))
    each = tables(text)
    assert len(each) == len(organs)
    for organ, (heads, *lines) in zip(organs, each, strict=True):
        models = [row for row in rows if row["organ"] == organ]
        assert [head.removesuffix(", undefended") for head in heads[1:]] == [row["model"] for row in models]
        kinds = ("clean", "noise", "native", "adaptive", "transfer", "queries", "worst")
        for kind, (_, *cells) in zip(kinds, lines, strict=False):
            assert [cell.split(" ")[0] for cell in cells] == [number(nan(row[kind])) for row in models]
        for place, row in enumerate(models[1:], 2):
            assert lines[6][place] == f"{number(row['worst'])} {row['worst_low']:.2f}-{row['worst_high']:.2f}"
            assert lines[8][place].split(" ")[0] == signed(row["to_twin"])
        assert lines[-1][1:] == ["", *(row["verdict"] for row in models[1:])]
        assert lines[-2][1:] == [f"{row['passes']:.0f}" for row in models]
    for row in rows:
        if row["organ"] == "mean" and not row["is_twin"]:
            assert f"{row['model']}: {row['verdict']}" in unescape(text)


def rows_in(root: Path) -> Any:
    """The rows of all runs of a trial, by file, without clock times."""
    return {
        str(file.relative_to(root)): pd.read_parquet(file).drop(columns=["seconds", "fit_seconds"], errors="ignore")
        for file in sorted(root.rglob("*.parquet"))
    }


def test_kill_9_in_three_parts_of_a_trial_changes_no_number(home: Path, tmp_path: Path) -> None:
    short = ("--steps", "1", "--queries", "5", "--limit", "2", "--batch-size", "1")
    quick = ("--against", "fgsm", "--eps", "8/255", *short)
    words = ["defend", QUANTISED, *quick, "--home", str(home), "--device", "cpu", "--out"]
    for n, part in ((3, "native"), (2, "adaptive"), (4, "queries")):
        killed(command_killed_at_file, [*words, str(tmp_path / "killed")], n, f"/{part}/")
        assert not (tmp_path / "killed" / "native" / "trial.json").exists()
    tables = [medattack(*words, tmp_path / out, "--json").stdout for out in ("killed", "whole")]
    assert json.loads(tables[0]) == json.loads(tables[1])
    resumed, undisturbed = (rows_in(tmp_path / out) for out in ("killed", "whole"))
    assert list(resumed) == list(undisturbed)
    for name, rows in resumed.items():
        pd.testing.assert_frame_equal(rows, undisturbed[name], check_exact=True)


def test_what_cannot_be_tried_is_refused_in_a_sentence(home: Path) -> None:
    def refusal(*words: str) -> str:
        return " ".join(medattack("defend", *words, "--home", home, code=2).output.split())

    assert "expected an undefended twin of" in refusal("unet_small")
    assert "give --twin NAME" in refusal("unet_small", "--twin", "unet_small")
    assert "expected" in refusal("guarded('nowhere', [median])")
