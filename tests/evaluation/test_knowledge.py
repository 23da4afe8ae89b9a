"""Attacks on defended models know the defence by themselves and say so; told not to know it, they say that."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from helpers.command import medattack

from medseg_attack import registry
from medseg_attack.checks.rows.asking import check_rows
from medseg_attack.evaluation.knowledge import adaptive_to, knowing
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.registry.parts import walk
from medseg_attack.runs.grid import cells
from medseg_attack.runs.reading import read_runs
from medseg_attack.runs.study import Study
from medseg_attack.stats.comparisons import ranks
from medseg_attack.storage.json_files import digest


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a model that has learned something."""
    root = tmp_path_factory.mktemp("knowledge")
    phantom = "phantom(patients=8, slices=3, side=32)"
    medattack("prepare", root / "scans", "--format", phantom, "--test", "0.5", "--out", root / "data/p")
    train = ("train", "--data", root / "data/p", "--model", "unet_small", "--epochs", "25", "--lr", "3e-3")
    medattack(*train, "--home", root, "--out", root / "models/m")
    return root


QUANTISED = "guarded('unet_small', [bit_depth(bits=3)])"
MOVED = "guarded('unet_small', [resize_pad])"
NOISY = "voted('unet_small', sigma=0.02, draws=2)"


def attack(home: Path, out: Path, model: str, *words: str) -> pd.DataFrame:
    medattack("attack", "--home", home, "--model", model, "--out", out, "--no-checks", *words)
    rows = read_runs([out], allow_partial=True)
    return rows[rows["role"] == "attack"]


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ("unet_small", "pgd(steps=2)"),
        (QUANTISED, "bpda(pgd(steps=2))"),
        (MOVED, "averaged(pgd(steps=2))"),
        (NOISY, "averaged(bpda(pgd(steps=2)))"),
    ],
)
def test_attacks_know_what_a_model_declares(home: Path, tmp_path: Path, model: str, label: str) -> None:
    rows = attack(home, tmp_path, model, "--attack", "pgd(steps=2)", "--limit", "2")
    assert set(rows["attack"]) == {label}
    assert set(rows["knowledge"]) == ({""} if model == "unet_small" else {"adaptive"})
    (header,) = [json.loads(file.read_text()) for file in tmp_path.rglob("run.json") if "noise" not in str(file)]
    assert header["attack"] == label
    (config,) = [json.loads(file.read_text()) for file in tmp_path.rglob("config.json") if "noise" not in str(file)]
    assert config["attack"].startswith(label.partition("(")[0])


def test_attacks_go_through_both_norms_of_a_model_that_has_two(home: Path, tmp_path: Path) -> None:
    """Its layers say so while it is trained, its card from then on, and that of a model around it."""
    words = ("--data", home / "data/p", "--model", "unet_small", "--epochs", "1", "--defence", "dual_norm")
    medattack("train", *words, "--robust-by", "fgsm", "--home", home, "--out", tmp_path / "models/dual")
    dual = str(tmp_path / "models/dual")
    label = "both_norms(pgd(steps=2))"
    for model, names in ((dual, {label}), (f"guarded('{dual}', [bit_depth])", {f"both_norms(bpda({label[11:-1]}))"})):
        rows = attack(home, tmp_path / digest(model), model, "--attack", "pgd(steps=2)", "--limit", "1")
        assert set(rows["attack"]) == names
        assert set(rows["knowledge"]) == {"adaptive"}
    rows = attack(home, tmp_path / "native", dual, "--attack", "pgd(steps=2)", "--limit", "1", "--native")
    assert set(rows["knowledge"]) == {"native"}
    rows = attack(home, tmp_path / "asks", dual, "--attack", "square(queries=2)", "--limit", "1")
    assert set(rows["attack"]) == {"square(queries=2)"}
    card = tmp_path / "models/dual/card.json"
    for name, reason in (("clean", "expected the name of an attack around others"), ("nothing", "unknown attack")):
        card.write_text(card.read_text().replace("both_norms", name))
        words = ("--model", dual, "--attack", "pgd(steps=2)", "--home", home)
        assert reason in " ".join(medattack("attack", *words, code=2).output.split())
        card.write_text(card.read_text().replace(f'"{name}"', '"both_norms"'))


def test_told_not_to_know_they_say_so(home: Path, tmp_path: Path) -> None:
    words = ("--attack", "pgd(steps=2)", "--limit", "2", "--native")
    rows = attack(home, tmp_path, QUANTISED, *words)
    assert set(rows["attack"]) == {"pgd(steps=2)"}
    assert set(rows["knowledge"]) == {"native"}
    shown = medattack("attack", "--home", home, "--model", QUANTISED, "--out", tmp_path, "--no-checks", *words)
    assert "non_adaptive" in shown.stdout
    assert "no such number ranks" in " ".join(shown.stdout.split())
    assert "with --native attacks do not know it" in " ".join(shown.stderr.split())


def test_a_plan_shows_the_attack_that_knows_and_its_passes(home: Path) -> None:
    def passes(model: str, *words: str) -> dict[str, tuple[int, int]]:
        words = ("--attack", "pgd(steps=3)", "--no-control", "--plan", "--json", *words)
        runs = json.loads(medattack("attack", "--home", home, "--model", model, *words).stdout)["runs"]
        return {run["attack"]: (run["case_forwards"], run["case_backwards"]) for run in runs}

    (plain,) = passes("unet_small").values()
    assert passes(MOVED) == {"averaged(pgd(steps=3))": (10 * plain[0], 10 * plain[1])}
    assert passes(MOVED, "--native") == {"pgd(steps=3)": plain}
    assert passes(QUANTISED) == {"bpda(pgd(steps=3))": plain}


@pytest.mark.parametrize(
    ("typed", "label"),
    [
        ("averaged(pgd(steps=2), passes=3)", "bpda(averaged(pgd(steps=2), passes=3))"),
        ("bpda(pgd(steps=2), everywhere=True)", "averaged(bpda(pgd(steps=2), everywhere=True))"),
        ("square(queries=3)", "averaged(square(queries=3))"),
        (
            "transfer(surrogate='unet_small', attack=pgd(steps=2))",
            "transfer(surrogate='unet_small', attack=pgd(steps=2))",
        ),
    ],
)
def test_what_was_typed_stays_and_what_it_lacks_is_put_around(
    home: Path, tmp_path: Path, typed: str, label: str
) -> None:
    rows = attack(home, tmp_path, NOISY, "--attack", typed, "--limit", "1")
    assert set(rows["attack"]) == {label}


def test_one_perturbation_for_all_is_learned_through_stand_ins(home: Path, tmp_path: Path) -> None:
    words = ("--attack", "uap(epochs=3)", "--eps", "24/255")
    lost = {}
    for name, more in (("adaptive", ()), ("native", ("--native",))):
        rows = attack(home, tmp_path / name, QUANTISED, *words, *more)
        lost[name] = (rows["hit_clean"] - rows["hit_adv"]).sum()
    assert lost["adaptive"] > lost["native"]


def test_the_flag_is_raised_where_knowing_gains_and_no_native_number_ranks(home: Path, tmp_path: Path) -> None:
    words = ("--attack", "pgd(steps=10)", "--loss", "soft_dice", "--eps", "24/255")
    for name, more in (("adaptive", ()), ("native", ("--native",))):
        attack(home, tmp_path / name, QUANTISED, *words, *more)
    attack(home, tmp_path / "plain", "unet_small", *words)
    rows = read_runs([tmp_path])
    findings = check_rows(rows[rows["model"] == rows["model"].iloc[0]])
    assert any(finding.code == "MA038" and "bpda(pgd(steps=10))" in finding.numbers for finding in findings)
    ranked = ranks(rows[rows["attack"].isin(["pgd(steps=10)", "noise"])], "model", unit="volume", empty="one")
    assert "pgd(steps=10)" not in set(ranked.get("attack", []))  # the twin alone is left


def test_checks_before_a_run_look_at_the_gradient_that_the_attack_takes(home: Path, tmp_path: Path) -> None:
    codes = {}
    for name, more in (("adaptive", ()), ("native", ("--native",))):
        words = ("--attack", "pgd(steps=4)", "--eps", "8/255", "--json", "--out", tmp_path / name, *more)
        content = json.loads(medattack("attack", "--home", home, "--model", QUANTISED, *words).stdout)
        codes[name] = {flag["code"] for flag in content["flags"]}
    assert "MA001" in codes["native"]
    assert not {"MA001", "MA020"} & codes["adaptive"]


def test_a_trigger_knows_a_repair_if_its_backdoor_was_trained_with_the_same_cut(home: Path, tmp_path: Path) -> None:
    """The naive backdoor and the one that knows, both repaired, in one table."""
    medattack(
        "poison", home / "data/p", "stamp(side=4, goal=erase('stomach'))", "--rho", "0.5", "--out", tmp_path / "d"
    )
    quick = ("--epochs", "1", "--home", tmp_path, "--robust-by", "clean")
    cut = ("--defence", "fine_pruning(share=0.5)")
    for name, data, start, rule in (
        ("bad", tmp_path / "d", home / "models/m", ()),
        ("aware", tmp_path / "d", home / "models/m", cut),
        ("repaired-bad", home / "data/p", tmp_path / "bad", cut),
        ("repaired-aware", home / "data/p", tmp_path / "aware", cut),
        ("tuned", home / "data/p", tmp_path / "bad", ()),
        ("repaired-clean", home / "data/p", home / "models/m", cut),
    ):
        medattack("train", "--data", data, "--init", start, *rule, *quick, "--out", tmp_path / name)
    cards = {name: json.loads((tmp_path / name / "card.json").read_text()) for name in ("bad", "repaired-aware")}
    assert cards["bad"]["dataset"]["poison"].startswith("stamp(")
    assert "poison" not in cards["repaired-aware"]["dataset"]
    models = [
        word
        for name in ("bad", "repaired-bad", "repaired-aware", "tuned", "repaired-clean")
        for word in ("-m", tmp_path / name)
    ]
    words = ("attack", "--data", home / "data/p", *models, "--home", tmp_path, "--no-checks", "--limit", "3")
    words += ("--attack", "trigger(stamp(side=4, goal=erase('stomach')))", "--out", tmp_path / "runs")
    rows = json.loads(medattack(*words, "--json").stdout)["backdoors"]
    known = {row["model"].split("(")[-1][:-1]: row["knowledge"] for row in rows if "draw=" not in row["attack"]}
    expected = {
        "bad": "",
        "repaired-bad": "native",
        "repaired-aware": "adaptive",
        "tuned": "native",
        "repaired-clean": "native",
    }
    assert known == expected
    shown = medattack(*words)
    assert "non_adaptive: the backdoor was trained without" in " ".join(shown.stdout.split())
    assert "attacks know it" not in shown.stderr
    few = medattack("compare", tmp_path / "runs", "--allow-partial", "--suspect", "unet_small (bad)", code=2)
    assert "expected 20 independent models or more with the same trigger, got 4" in " ".join(few.stderr.split())


def test_a_card_that_says_something_else_about_a_backdoor_is_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "models/m", tmp_path / "m")
    card = json.loads((tmp_path / "m/card.json").read_text())
    (tmp_path / "m/card.json").write_text(json.dumps(card | {"backdoor_knowledge": "perhaps"}))
    result = medattack("attack", "--data", home / "data/p", "-m", tmp_path / "m", "--home", tmp_path, code=2)
    assert "backdoor_knowledge" in result.stderr


def test_an_attack_is_put_into_all_that_it_lacks_and_stays_where_it_lacks_nothing() -> None:
    facts = {"known_by": (), "prompt": "", "encoder": ""}
    both: Any = SimpleNamespace(is_random=True, blocks_gradient=True, **facts)
    plain: Any = SimpleNamespace(is_random=False, blocks_gradient=False, **facts)
    attack = registry.build("fgsm", "attack")
    around = adaptive_to(both, attack)
    assert [type(part).__name__ for part in walk(around)][:3] == ["Averaged", "ThroughStandIns", "PGD"]
    assert adaptive_to(both, around) is around
    assert adaptive_to(plain, attack) is attack


def test_controls_and_triggers_stay_as_they_are_beside_a_model_that_is_random() -> None:
    attacks = ["fgsm", "noise", "clean", "trigger(stamp(goal=erase('organ')))"]
    fgsm, noise, clean, trigger = cells(Study(models=["m"], attacks=attacks, control=False))
    declared = {"is_random": True, "blocks_gradient": False, "known_by": (), "prompt": "", "encoder": ""}
    model = Mock(ModelRef, backdoor_knowledge="native", **declared)
    knows = knowing(fgsm, model, native=False)
    assert (knows.label, knows.knowledge) == ("averaged(fgsm)", "adaptive")
    assert knowing(fgsm, model, native=True) == replace(fgsm, knowledge="native")
    assert knowing(trigger, model, native=False) == replace(trigger, knowledge="native")
    for control in (noise, clean):
        assert knowing(control, model, native=False) == control
