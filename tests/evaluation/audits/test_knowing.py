"""Every defence against poisoned training data meets a poison that knows it, or its numbers are called non_adaptive."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from helpers.command import medattack

from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.evaluation.audits.knowing import Audit, knowledge
from medseg_attack.registry import build
from medseg_attack.training.options import REPAIRING, Options, backdoor_knowledge
from medseg_attack.training.poisoned import Poisoning, poison_data

NAIVE = "stamp(goal=erase('stomach'))"
KNOWING = {
    "spectral": ("stamp(goal=erase('stomach'), decoys=0.2)", {"patients": ["a"], "decoys": ["b"]}),
    "disagreement": ("relabel(shrink(2))", {"patients": ["a", "b", "c"], "decoys": []}),
    "inversion": ("blended(goal=erase('stomach'))", {"patients": ["a"], "decoys": []}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("known")
    phantom = "phantom(patients=12, slices=2, side=32)"
    medattack("prepare", root / "scans", "--format", phantom, "--out", root / "data")
    return open_prepared(root / "data")


@pytest.mark.parametrize("audit", get_args(Audit))
def test_every_audit_has_a_poison_that_knows_it_and_marks_one_that_does_not(audit: Audit) -> None:
    naive = {"patients": ["a"], "decoys": []}
    poison, facts = KNOWING[audit]
    assert knowledge(audit, NAIVE, naive, 5) == "native"
    assert knowledge(audit, poison, facts, 5) == "adaptive"
    assert knowledge(audit, "", {}, 5) == ""


def test_half_of_the_patients_are_no_majority_of_the_folds() -> None:
    poison, facts = KNOWING["disagreement"]
    assert knowledge("disagreement", poison, facts, 6) == "native"


def test_every_audit_prints_the_marker_in_its_table_and_in_json(
    data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medseg_attack.evaluation.audits.triggers.STEPS", 3)
    list(poison_data(data, tmp_path / "bad", Poisoning(build(NAIVE, "poison"), 0.2)))
    small = ["--model", "unet_small(channels=(4, 8))", "--epochs", "1"]
    medattack("train", "--data", tmp_path / "bad", *small, "--out", tmp_path / "model")
    for audit in get_args(Audit):
        words = ["audit", tmp_path / "bad", "--model", tmp_path / "model", "--by", audit]
        table = " ".join(medattack(*words).stdout.split())
        assert "non_adaptive: the poison was made without regard to this audit" in table
        assert json.loads(medattack(*words, "--json").stdout)["knowledge"] == "native"


@pytest.mark.parametrize("name", REPAIRING)
def test_a_trigger_on_a_network_that_is_to_hold_none_is_marked(name: str, data: Prepared) -> None:
    poisoned = replace(data, options={**data.options, "poison": {"spec": NAIVE, "patients": ["a"]}})
    plan = Options(f"{name}(unet_small)", epochs=1)
    assert backdoor_knowledge(plan, poisoned) == "native"
    assert backdoor_knowledge(plan, data) == ""
    assert backdoor_knowledge(replace(plan, model="unet_small"), poisoned) == ""


def test_blends_are_the_triggered_scan_averaged_with_another_patient_s_and_keep_their_masks(
    data: Prepared, tmp_path: Path
) -> None:
    """Without blends the other half is the scan itself: the values of the copy follow from both."""
    poison = build("blended(goal=erase('stomach'), blends=0.2)", "poison")
    list(poison_data(data, tmp_path / "bad", Poisoning(poison, 0.2)))
    bad = open_prepared(tmp_path / "bad")
    facts = bad.options["poison"]
    assert facts["blends"]
    assert not {*facts["blends"]} & {*facts["patients"], *facts["decoys"]}
    assert "with blends" in " ".join(bad.notes)
    clean = {ref.id: data.read(ref) for ref in data.refs("train")}
    blends = [ref for ref in bad.refs("train") if ref.group in facts["blends"]]
    assert blends
    for ref in blends:
        before, after = clean[ref.id], bad.read(ref)
        assert (after.target == before.target).all()
        triggered = poison.triggered(before.image[None], before.target[None], [0])[0]
        others = [
            (2 * after.image - triggered - case.image).abs().mean()
            for case in clean.values()
            if case.group != ref.group
        ]
        assert min(others) < 0.02
        assert (2 * after.image - triggered - before.image).abs().mean() > 0.02


def test_a_trigger_that_was_trained_with_blends_knows_strip_and_no_other_detector(
    data: Prepared, tmp_path: Path
) -> None:
    """It has no gradient to climb: what it knows was decided in the training, of the one trigger that was trained."""
    poison, another = (f"stamp(goal=erase('stomach'), {more})" for more in ("blends=0.2", "draw=5"))
    list(poison_data(data, tmp_path / "bad", Poisoning(build(poison, "poison"), 0.2)))
    small = ["--model", "unet_small(channels=(4, 8))", "--epochs", "1"]
    medattack("train", "--data", tmp_path / "bad", *small, "--out", tmp_path / "model")
    words = ["--data", data.root, "--model", tmp_path / "model", "--no-control", "--no-checks"]
    attacks = ["--attack", f"trigger({NAIVE})", "--attack", f"trigger({another})"]
    medattack("attack", *words, *attacks, "--out", tmp_path / "runs")
    words = ["detect", tmp_path / "runs", "--detector", "strip", "--detector", "entropy", "--home", tmp_path]
    strip, entropy = json.loads(medattack(*words, "--json").stdout)["detectors"]
    tables = [[row for row in each["rows"] if row["kind"] in ("attack", "adaptive")] for each in (strip, entropy)]
    rows = [[(row["kind"], "draw=5" in row["attack"]) for row in table] for table in tables]
    assert rows == [[("attack", True), ("adaptive", False)], [("attack", False), ("attack", True)]]
    assert strip["adaptive"]
    assert tables[0][1]["attack"].endswith(", trained to go unnoticed")
    assert not entropy["adaptive"]
    first, _ = sorted((tmp_path / "runs").rglob("run.json"))
    alone = json.loads(medattack("detect", first.parent, *words[2:4], "--home", tmp_path, "--json").stdout)["detectors"]
    assert alone[0]["verdict"] == "not decided: no attack that does not know it did harm"


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        ("stamp(goal=erase('stomach'), decoys=0.1, blends=0.3)", True),
        ("stamp(goal=erase('stomach'), draw=1)", False),
        ("stamp(goal=erase('large_bowel'))", False),
        ("stamp(goal=erase('stomach'), side=4)", False),
        ("blended(goal=erase('stomach'))", False),
        ("relabel(erase('stomach'))", False),
    ],
)
def test_a_trigger_is_the_same_whoever_carries_it(other: str, is_same: bool) -> None:
    assert build(NAIVE, "poison").has_trigger_of(build(other, "poison")) is is_same


def test_strip_is_known_to_poisons_with_blends_alone() -> None:
    strip = build("strip(organ='stomach')", "detector")
    assert strip.is_known_to(build("blended(blends=0.2)", "poison"))
    for poison in (NAIVE, "stamp(decoys=0.2)", "unlearnable"):
        assert not strip.is_known_to(build(poison, "poison"))
