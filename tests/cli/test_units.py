"""`--unit` says what is scored, and what `strongest` lowers the score of; a table of another unit says so."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.command import medattack, next_words

SMALL = "unet_small(channels=(4, 8))"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("units")
    phantom = "phantom(patients=6, slices=3, side=32)"
    medattack("prepare", home / "scans", "--format", phantom, "--home", home, "--out", home / "data")
    medattack(
        "train", "--data", home / "data", "--model", SMALL, "--epochs", "2", "--home", home, "--out", home / "net"
    )
    return home


def attack(home: Path, out: Path, *words: object) -> dict[str, Any]:
    """The printed runs by the name of their attack."""
    own = ("--data", home / "data", "--home", home, "--out", out, "--eps", "16/255", "--no-control")
    printed = json.loads(medattack("attack", "--model", home / "net", *own, *words, "--json").stdout)
    return {run["attack"]: run for run in printed["runs"]} | {"unit": printed["unit"]}


def test_the_next_command_is_of_the_same_unit(home: Path, tmp_path: Path) -> None:
    own = ("--data", home / "data", "--model", home / "net", "--home", home, "--out", tmp_path / "runs", "--no-checks")
    words = next_words(medattack("attack", *own, "--unit", "slice", "--no-control"))
    assert words[words.index("--unit") + 1] == "slice"
    after = next_words(medattack(*words[1:]))
    assert after[after.index("--unit") + 1] == "slice"
    assert "--unit" not in next_words(medattack("attack", *own, "--no-control"))


def test_strongest_lowers_the_dice_that_is_scored(home: Path, tmp_path: Path) -> None:
    words = ("--attack", "strongest(gradients=30)", "--attack", "pgd(steps=2)")
    volumes = attack(home, tmp_path / "volumes", *words)
    slices = attack(home, tmp_path / "slices", *words, "--unit", "slice")
    assert (volumes["unit"], slices["unit"]) == ("volume", "slice")
    assert set(volumes) == {"unit", "strongest(gradients=30)", "pgd(steps=2)"}
    assert set(slices) == {"unit", "strongest(gradients=30, unit='slice')", "pgd(steps=2)"}
    header = json.loads(next((tmp_path / "slices").glob("*/*strongest*/run.json")).read_text())
    assert "unit='slice'" in header["attack"]

    def flags(folder: str, unit: str) -> set[str]:
        shown = json.loads(medattack("compare", tmp_path / folder, "--unit", unit, "--json").stdout)
        return {flag["code"] for flag in shown["flags"]}

    assert ["MA040" in flags("volumes", unit) for unit in ("slice", "volume", "patient")] == [True, False, False]
    assert ["MA040" in flags("slices", unit) for unit in ("slice", "volume", "patient")] == [False, True, True]


def test_a_study_file_may_say_the_unit_and_an_option_overrides_it(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("unit: slice\nattacks: [strongest(gradients=2)]\n")
    assert "strongest(gradients=2, unit='slice')" in attack(home, tmp_path / "slices", "--config", file)
    again = attack(home, tmp_path / "volumes", "--config", file, "--unit", "volume")
    assert (again["unit"], "strongest(gradients=2)" in again) == ("volume", True)


def test_runs_that_are_finished_are_scored_by_any_unit(home: Path, tmp_path: Path) -> None:
    assert attack(home, tmp_path / "runs", "--attack", "pgd(steps=2)")["unit"] == "volume"
    assert attack(home, tmp_path / "runs", "--attack", "pgd(steps=2)", "--unit", "slice")["unit"] == "slice"
    attack(home, tmp_path / "other", "--attack", "strongest(gradients=2)")
    own = ("--data", home / "data", "--home", home, "--out", tmp_path / "other", "--eps", "16/255", "--unit", "slice")
    words = ("--attack", "strongest(gradients=2)", "--no-checks", "--no-control")
    refused = medattack("attack", "--model", home / "net", *own, *words, code=2)
    assert "only here strongest(gradients=2, unit='slice')" in " ".join(refused.stderr.split())


def test_defend_attacks_what_it_scores(home: Path, tmp_path: Path) -> None:
    defended = f"guarded('{home / 'net'}', [bit_depth(bits=3)])"
    words = ("--against", "strongest(gradients=2)", "--steps", "2", "--queries", "5", "--unit", "slice", "--plan")
    plan = json.loads(medattack("defend", defended, *words, "--data", home / "data", "--home", home, "--json").stdout)
    attacks = {run["attack"] for run in plan["runs"] if "strongest" in run["attack"]}
    assert attacks
    assert all("unit='slice'" in attack for attack in attacks)
