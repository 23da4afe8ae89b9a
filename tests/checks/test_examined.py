"""The checks before a run take what a run takes: attacks that have learned nothing yet, and goals of other patients."""

from types import SimpleNamespace

import pytest
from helpers.blobs import batch, healthy
from helpers.short_attacks import ATTACKS, short

from medseg_attack import registry
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.checks.probes import preflight
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import CaseRef, Donors

FEW = batch(2)
REFS = tuple(CaseRef(case.id, case.volume, case.group, tuple(case.image.shape[1:])) for case in FEW.cases)
DONORS = Donors(SimpleNamespace(read=dict(zip(REFS, FEW.cases, strict=True)).get), REFS)  # type: ignore[arg-type]
MORE = {"MA007", "MA023"}  # few steps and one objective are not all that can be done
OF_CASES = ("mask",)  # goals that are read from a folder
GOALS = [goal for goal in registry.names("goal") if goal not in OF_CASES]
SPECS = {"grow": "grow(mm=2)", "shift": "shift(dx_mm=2)", "dissolve": "dissolve(organ='round')"}


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_examined(name: str) -> None:
    assert {finding.code for finding in preflight(healthy(), FEW, [short(name)], donors=DONORS)} <= MORE


@pytest.mark.parametrize("goal", GOALS)
def test_every_goal_is_examined(goal: str) -> None:
    objective = registry.build(f"toward(bce, {SPECS.get(goal, goal)})", "objective")
    findings = preflight(healthy(), FEW, [PGD(Linf(4 / 255), objective, steps=3)], donors=DONORS)
    assert {finding.code for finding in findings} <= MORE
