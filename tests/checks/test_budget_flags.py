"""A budget with a unit is checked as the fraction that it is; what files round away of a budget is said."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.bright import write_bright
from helpers.command import medattack


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with CT whose window is 80 HU wide, so that one stored value is 1/80 of it."""
    home = tmp_path_factory.mktemp("budgets")
    write_bright(home / "scans", channel="CT")
    words = ["prepare", home / "scans", "--format", "decathlon", "--home", home, "--test", "1"]
    medattack(*words, "--window=10,90", "--out", home / "data")
    return home


def attack(home: Path, out: Path, eps: str, *more: Any, code: int = 0) -> Any:
    words = ["attack", "--data", home / "data", "--home", home, "--model", f"own('{home}/scans/nets.py:Net')"]
    return medattack(*words, "--eps", eps, "--out", out / eps.replace("/", "of"), *more, code=code)


def flags_of(home: Path, out: Path, eps: str, *more: Any) -> dict[str, str]:
    """The numbers of each flag, by its code."""
    flags = json.loads(attack(home, out, eps, *more, "--json").stdout)["flags"]
    return {flag["code"]: flag["seen"] for flag in flags}


def test_the_same_budget_raises_the_same_flags_in_every_unit(home: Path, tmp_path: Path) -> None:
    pgd = ["--attack", "pgd(steps=8, step_size=0.15, random_start=False)"]
    flags = {eps: flags_of(home, tmp_path, eps, *pgd) for eps in ("0.45", "45%window", "36HU", "36raw")}
    assert "MA007" in flags["0.45"]
    assert all(flags[eps] == flags["0.45"] for eps in flags)
    for eps in flags:  # and they name it as it was typed
        assert f"eps {eps}: more steps" in " ".join(attack(home, tmp_path, eps, *pgd).stdout.split())


@pytest.mark.parametrize("eps", ["0.00625", "0.625%window", "0.5HU", "0.5raw"])
@pytest.mark.parametrize("region", [(), ("--region", "body")], ids=["everywhere", "in a region"])
def test_a_budget_below_one_stored_value_is_refused_in_every_unit(
    home: Path, tmp_path: Path, eps: str, region: tuple[str, ...]
) -> None:
    said = " ".join(attack(home, tmp_path, eps, *region, code=2).stderr.split())
    assert f"expected eps of one stored value or more, got {eps} where one is 0.0125 of the window" in said


def test_a_budget_in_noise_that_is_below_one_stored_value_is_flagged_from_the_rows(home: Path, tmp_path: Path) -> None:
    assert "100% of the cases" in flags_of(home, tmp_path, "0.01sigma")["MA015"]


@pytest.mark.parametrize(("eps", "realised"), [("4/255", "0.0125"), ("1.9HU", "0.0125"), ("2.9raw", "0.0250")])
def test_the_realised_eps_is_said_where_files_round_it_down(
    home: Path, tmp_path: Path, eps: str, realised: str
) -> None:
    assert f"of the window {realised} is realised" in flags_of(home, tmp_path, eps)["MA035"]


@pytest.mark.parametrize("eps", ["0.025", "2HU", "2raw"])
def test_nothing_is_said_of_a_budget_of_whole_stored_values(home: Path, tmp_path: Path, eps: str) -> None:
    assert not {"MA035", "MA015"} & set(flags_of(home, tmp_path, eps))


def test_attacks_with_units_of_their_own_beside_others_are_noted(home: Path, tmp_path: Path) -> None:
    both = ["--attack", "pgd(steps=1)", "--attack", "bias_field(steps=1)"]
    note = "note: --eps 0.1 has several meanings: fraction of the intensity window for pgd(steps=1), field strength for"
    result = attack(home, tmp_path, "0.1", *both, "--json")
    assert note in " ".join(result.stderr.split())
    runs = json.loads(result.stdout)["runs"]
    assert [run["eps_unit"] for run in runs if run["role"] == "attack"] == ["", "field strength"]
    assert "several meanings" not in attack(home, tmp_path, "0.1", "--attack", "pgd(steps=1)", "--plan").stderr
