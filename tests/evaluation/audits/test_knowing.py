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
