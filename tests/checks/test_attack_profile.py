"""`ls attacks --explain`: what is said of an attack is what it does."""

import json

import pytest
from typer.testing import CliRunner

from medseg_attack import registry
from medseg_attack.checks import attack_profile as explain
from medseg_attack.checks.attack_profile import profile
from medseg_attack.cli import app


def test_what_an_attack_says_of_itself_is_told() -> None:
    told = profile("fgsm_wang2024")
    assert told["paper"] == "Wang & Xu, arXiv 2401.11224, as released"
    assert (told["threat"], told["norm"], told["passes"]) == ("white box", "blend", "2 forward, 1 backward")


def test_what_it_leaves_open_is_read_off_the_attack() -> None:
    told = profile("pgd")
    assert told["paper"] == "Madry et al., arXiv 1706.06083"
    assert (told["threat"], told["norm"], told["passes"]) == ("white box", "linf or l2", "22 forward, 20 backward")
    assert told["defaults"] == registry.options("pgd")
    assert profile("noise")["threat"] == "no model"


def test_an_attack_that_cannot_run_by_itself_is_told_without_a_cost() -> None:
    assert profile("replay")["passes"] == "-"


@pytest.mark.parametrize("name", registry.names("attack"))
def test_every_attack_is_explained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "_passes", lambda name: (3, 2))  # long attacks take their time
    told = explain.profile(name)
    assert all(isinstance(value, str) for value in told.values())
    assert told["what"].endswith(".")
    assert told["threat"]


def test_the_command_prints_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "_passes", lambda name: (3, 2))
    found = CliRunner().invoke(app, ["ls", "attacks", "--explain", "--json"])
    assert found.exit_code == 0
    assert {row["name"] for row in json.loads(found.stdout)} == set(registry.names("attack"))
    wrong = CliRunner().invoke(app, ["ls", "models", "--explain"])
    assert wrong.exit_code == 2


def test_every_family_has_attacks_and_a_suite_is_not_among_the_gradients() -> None:
    of = {name: explain.family(name) for name in registry.names("attack")}
    assert set(of.values()) == set(explain.FAMILIES)
    stand = {"pgd": 1, "sea": 2, "strongest": 2, "cw": 3, "vafa": 4, "square": 5, "uap": 6, "noise": 0}
    assert {name: explain.FAMILIES.index(of[name]) for name in stand} == stand


def test_a_long_attack_is_followed_up_to_a_limit() -> None:
    assert profile("square")["passes"] == "over 120"
    assert profile("apgd")["passes"] == "102 forward, 100 backward"


def test_attacks_are_listed_by_family_in_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = CliRunner().invoke(app, ["ls", "attacks"]).stdout.splitlines()
    titles = [line.strip() for line in lines if line.strip() in explain.FAMILIES]
    assert titles == list(explain.FAMILIES)
    assert max(map(len, lines)) <= 100
