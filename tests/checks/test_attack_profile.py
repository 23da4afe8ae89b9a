"""`ls attacks --explain`: what is said of an attack is what it does."""

import json

import pytest
from typer.testing import CliRunner

from medseg_attack import registry
from medseg_attack.checks import attack_profile
from medseg_attack.checks.attack_profile import profile
from medseg_attack.cli import app


def test_what_an_attack_says_of_itself_is_told() -> None:
    facts = profile("fgsm_wang2024")
    assert facts["paper"] == "Wang & Xu, arXiv 2401.11224, as released"
    assert (facts["threat"], facts["norm"], facts["passes"]) == ("white box", "blend", "2 forward, 1 backward")


def test_what_it_leaves_open_is_read_off_the_attack() -> None:
    facts = profile("pgd")
    assert facts["paper"] == "Madry et al., arXiv 1706.06083"
    assert (facts["threat"], facts["norm"], facts["passes"]) == ("white box", "linf or l2", "22 forward, 20 backward")
    assert facts["defaults"] == registry.options(registry.find("pgd"))
    assert profile("noise")["threat"] == "no model"
    assert profile("bias_field")["norm"] == "gain"  # the ball as it is typed


def test_an_attack_that_cannot_run_by_itself_is_told_without_a_cost() -> None:
    assert profile("replay")["passes"] == "-"


@pytest.mark.parametrize("name", registry.names("attack"))
def test_every_attack_is_explained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack_profile, "_passes", lambda name: (3, 2))  # long attacks take their time
    facts = profile(name)
    assert all(isinstance(value, str) for value in facts.values())
    assert facts["what"].endswith(".")
    assert facts["threat"]
    # papers in brackets further down are cited for a detail
    assert registry.find(name).paper or facts["paper"] == "-" or f"({facts['paper']})" in facts["what"]


def test_the_command_prints_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack_profile, "_passes", lambda name: (3, 2))
    listing = CliRunner().invoke(app, ["ls", "attacks", "--explain", "--json"])
    assert listing.exit_code == 0
    assert {row["name"] for row in json.loads(listing.stdout)} == set(registry.names("attack"))
    wrong = CliRunner().invoke(app, ["ls", "models", "--explain"])
    assert wrong.exit_code == 2


def test_the_family_of_an_attack_is_its_folder() -> None:
    stand = {
        "apgd": "gradient",
        "clean": "controls",
        "cw": "minimal",
        "medis": "composed",
        "pgd": "gradient",
        "replay": "blackbox",
        "sea": "composed",
        "shuffled": "controls",
        "square": "blackbox",
        "uap_gaussian": "universal",
        "vafa": "physical",
    }
    assert {name: registry.find(name).family for name in stand} == stand
    titles = {registry.find(name).family_title for name in registry.names("attack")}
    assert "Controls: what every attack must beat" in titles
    assert len(titles) == len({registry.find(name).family for name in registry.names("attack")})


def test_a_long_attack_is_followed_up_to_a_limit() -> None:
    assert profile("square")["passes"] == "over 120"
    assert profile("apgd")["passes"] == "102 forward, 100 backward"


def test_attacks_are_listed_by_family_controls_first_in_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = [line.rstrip() for line in CliRunner().invoke(app, ["ls", "attacks"]).stdout.splitlines()]
    titles = {registry.find(name).family_title for name in registry.names("attack")}
    listed = [line for line in lines if line in titles]
    assert listed == sorted(titles, key=lambda title: (not title.startswith("Controls"), title))
    controls = lines[lines.index("Controls: what every attack must beat") + 1 : lines.index(listed[1]) - 1]
    assert [line.split()[0] for line in controls if line and line[0] != " "] == ["clean", "noise", "shuffled"]
    assert max(map(len, lines)) <= 100
    start = lines.index("Options that many attacks share") + 1
    shared = [line.split()[0] for line in lines[start:] if line and line[0] != " "]
    assert {"ball", "objective", "steps", "step_size", "attacks"} <= set(shared)
    assert all(line.isidentifier() for line in shared)
