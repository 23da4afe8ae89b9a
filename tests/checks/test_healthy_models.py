"""Healthy models of five families: no flag before a run and none after it, but notes.

Half a minute: each family is trained, since an untrained network is a fault of its own.
"""

from dataclasses import asdict

import pandas as pd
import pytest
from helpers.blobs import batch
from helpers.families import FAMILIES, exclusive, trained

from medseg_attack.attacks.controls.noise import Noise
from medseg_attack.attacks.gradient.pgd import PGD, fgsm
from medseg_attack.checks.probes import preflight
from medseg_attack.checks.rows.asking import check_rows
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.models.segmodel import frozen
from medseg_attack.registry import spec
from medseg_attack.runs.stored_specs import role_of
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce, soft_dice
from medseg_attack.types import Attack

EPS = 4 / 255


SLOW = ("SegResNet",)  # its training takes half the time of all


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[pytest.mark.slow] if family in SLOW else []) for family in FAMILIES]
)
def test_a_healthy_model_has_no_flag_but_notes(family: str) -> None:
    model, cases = trained(family), batch(12)
    cases = exclusive(cases) if model.task.exclusive else cases
    attacks: list[Attack] = [PGD(Linf(EPS), objective, steps=40) for objective in (bce, soft_dice)]
    few = exclusive(batch()) if model.task.exclusive else batch()
    findings = preflight(model, few, attacks)

    runs = []
    everything: list[Attack] = [Noise(Linf(EPS)), fgsm(Linf(EPS)), *attacks]
    with frozen(model):
        results = attack_chunk(model, [cases], everything)
    for attack, result in zip(everything, results, strict=True):
        table = pd.DataFrame([{**asdict(row), **row.extra} for row in result.rows]).drop(columns="extra")
        head = {"run": spec(attack), "model": family, "attack": type(attack).__name__.lower(), "eps": EPS}
        head |= {
            "role": role_of({"attack": spec(attack)}),
            "loss": spec(attack.objective) if isinstance(attack, PGD) else "",
        }
        runs.append(table.assign(**head, ball=f"linf(eps={EPS})", partial=False, val_dice=None))
    findings += check_rows(pd.concat(runs, ignore_index=True))
    assert [finding.sentence for finding in findings if finding.flag.verdict != "note"] == []
