"""`ls attacks --explain`: what is said of an attack is what it does."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from medseg_attack import registry
from medseg_attack.checks.attack_profile import profile
from medseg_attack.cli import app
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.registry.declared import Declaration, declarations
from medseg_attack.registry.passes import passes_of
from medseg_attack.types import Batch, Case, Fittable, Image, LogOdds, Mask, Task, Window

TASK = Task("one", ("organ",))
DECLARED = {declaration.name: declaration for declaration in declarations("attack")}
LONG_FITS = ("advgan", "fsra", "inpaint", "latent_edit")  # no pass of a fit is counted
LONG = 60  # forward passes: an attack whose defaults take more is counted with other options alone
SPECS = {  # options that a formula names, or that an attack needs; others are counted as in `shown_by`
    "advgan": "advgan(steps=2, attention=True)",
    "alma_prox": "alma_prox(steps=5)",
    "asma": "asma(steps=4)",
    "boundary": "boundary(queries=40)",
    "apgd": "apgd(steps=20, restarts=2, radii=(2, 1.5, 1))",
    "averaged": "averaged(pgd(steps=3), passes=4)",
    "best_of": "best_of((pgd(steps=2), padam(steps=3)), unit='volume')",
    "asma_ozbulak2019": "asma_ozbulak2019(steps=4)",
    "cw": "cw(steps=3, searches=2)",
    "dag": "dag(steps=3)",
    "daa": "daa(steps=2, particles=3)",
    "inpaint": "inpaint(steps=2)",
    "jsma": "jsma(steps=3)",
    "latent_edit": "latent_edit(steps=2, search=3)",
    "lbfgs": "lbfgs(steps=3, searches=2)",
    "least_of": "least_of((igsm(steps=3), igsm(objective=bce_dice)))",
    "medis": "medis(steps=3)",
    "padam": "padam(steps=4)",
    "pdgd": "pdgd(steps=3)",
    "pdpgd": "pdpgd(steps=3)",
    "pgd": "pgd(steps=3, restarts=2, keep_worst=False)",
    "restarts": "restarts(both_norms(fgsm), n=2)",
    "sea": "sea(steps=3, unit='volume')",
    "segpgd": "segpgd(steps=3, keep_worst=True)",
    "strongest": "strongest(gradients=119)",
    "transfer": "transfer(surrogate=oracle)",
    "zoo": "zoo(queries=100, coordinates=3, starts=2)",
}


def explained(name: str) -> dict[str, str]:
    return profile(name, DECLARED)


@dataclass(frozen=True, eq=False)
class Unmoved:
    """A model that answers the truth with other certainty each time: no attack succeeds, and none stops early."""

    task: Task
    target: Mask
    numbers: Any = field(default_factory=count)

    def __call__(self, image: Image) -> LogOdds:
        return (
            4.0 * (2 * self.target.to(image) - 1) + 1e-3 * image.mean(1, keepdim=True) + 1e-4 * (next(self.numbers) % 9)
        )

    def decide(self, log_odds: LogOdds) -> Mask:
        return log_odds >= 0


def measured(text: str) -> tuple[int, int]:
    """Forward and backward passes for an image, as they stand in the rows of a run."""
    image = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0))
    batch = Batch.of([Case("c", "v", "p", image, image >= 0.5, (1.0, 1.0), Window(0, 1))])
    attack = registry.build(text, "attack")
    if isinstance(attack, Fittable):
        attack = attack.with_learned(attack.fit(Unmoved(TASK, batch.target), [batch], seed=0))
    (row,) = attack_chunk(Unmoved(TASK, batch.target), [batch], [attack])[0].rows
    return row.forwards, row.backwards


@pytest.mark.parametrize("name", [name for name in DECLARED if name not in ("replay", "worst_prompt")])
def test_the_passes_that_an_attack_declares_are_those_that_are_counted(name: str) -> None:
    texts = [SPECS.get(name) or registry.find(name).shown_by or name]
    declared = passes_of(registry.named(name), DECLARED)
    assert declared is not None
    if declared.forwards <= LONG and name not in ("transfer", *LONG_FITS):
        texts.append(name)
    for text in texts:
        passes = passes_of(registry.named(text), DECLARED)
        assert passes is not None
        assert (passes.forwards, passes.backwards) == measured(text), text


def test_an_attack_that_may_stop_early_declares_the_most_that_it_takes() -> None:
    assert explained("dag")["passes"] == "up to 202 forward, 200 backward"
    inner = passes_of(registry.named("restarts(igsm, n=2)"), DECLARED)
    assert str(inner) == "up to 24 forward, 20 backward"


def test_an_attack_without_a_formula_is_listed_without_a_cost() -> None:
    bare = {**DECLARED, "my_attack": Declaration("my_attack", "attack", "medseg_attack.attacks", "An attack.", {}, {})}
    assert (profile("my_attack", bare)["passes"], profile("my_attack", bare)["threat"]) == ("-", "-")


@pytest.mark.parametrize("formula", ["abs(steps)", "steps ** 2", "steps[0]"])
def test_a_formula_of_anything_but_arithmetic_is_refused(formula: str) -> None:
    options: Mapping[str, Any] = DECLARED["pgd"].options
    wrong = Declaration(
        "wrong", "attack", "medseg_attack.attacks", "An attack.", {"cost": f"{formula} forward, 0 backward"}, options
    )
    with pytest.raises((ValueError, KeyError)):
        passes_of(registry.named("pgd"), {"pgd": wrong})


def test_what_an_attack_says_of_itself_is_told() -> None:
    facts = explained("fgsm_wang2024")
    assert facts["paper"] == "Wang & Xu, arXiv 2401.11224, as released"
    assert (facts["threat"], facts["norm"], facts["passes"]) == ("white box", "blend", "2 forward, 1 backward")


def test_what_it_leaves_open_is_read_off_the_attack() -> None:
    facts = explained("pgd")
    assert facts["paper"] == "Madry et al., arXiv 1706.06083"
    assert (facts["threat"], facts["norm"], facts["passes"]) == ("white box", "linf or l2", "22 forward, 20 backward")
    assert facts["defaults"] == registry.options(registry.find("pgd"))
    assert explained("noise")["threat"] == "no model"
    assert explained("bias_field")["norm"] == "gain"  # the ball as it is typed


@pytest.mark.parametrize("name", DECLARED)
def test_every_attack_is_explained(name: str) -> None:
    facts = explained(name)
    assert all(isinstance(value, str) for value in facts.values())
    assert facts["what"].endswith(".")
    assert facts["threat"]
    assert facts["passes"] != "-"
    # papers in brackets further down are cited for a detail
    assert registry.find(name).paper or facts["paper"] == "-" or f"({facts['paper']})" in facts["what"]


def test_the_command_prints_it() -> None:
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


def test_attacks_are_listed_by_family_controls_first_in_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = [line.rstrip() for line in CliRunner().invoke(app, ["ls", "attacks"]).stdout.splitlines()]
    titles = {registry.find(name).family_title for name in registry.names("attack")}
    listed = [line for line in lines if line in titles]
    assert listed == sorted(titles, key=lambda title: (not title.startswith("Controls"), title))
    controls = lines[lines.index("Controls: what every attack must beat") + 1 : lines.index(listed[1]) - 1]
    assert [line.split()[0] for line in controls if line and line[0] != " "] == [
        "blur",
        "clean",
        "contrast",
        "corruption",
        "noise",
        "shuffled",
        "worst_prompt",
    ]
    assert max(map(len, lines)) <= 100
    start = lines.index("Options that many attacks share") + 1
    shared = [line.split()[0] for line in lines[start:] if line and line[0] != " "]
    assert {"ball", "objective", "steps", "step_size", "attacks"} <= set(shared)
    assert all(line.isidentifier() for line in shared)
