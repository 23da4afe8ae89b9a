"""Checks before a run, asked at once: can this model's robustness be measured? Small questions about a few cases."""

from collections.abc import Sequence
from itertools import chain

import torch

from medseg_attack.attacks.composed.adaptive import backward_of, core, is_averaged
from medseg_attack.checks.flags import Check, Finding, Needs, by_severity, checks_in
from medseg_attack.checks.model import answers, gradients, images
from medseg_attack.checks.model.answers import check_repeated_passes
from medseg_attack.checks.model.gradients import check_finite, check_gradient_path
from medseg_attack.checks.model.images import check_image_range
from medseg_attack.checks.model.scene import Scene
from medseg_attack.models.segmodel import SegModel
from medseg_attack.storage.stages import begin_stage
from medseg_attack.threat.binding import bind
from medseg_attack.types import Attack, Batch, Donors, Model, Setting

BROKEN = ("MA002", "MA022", "MA025")  # no gradient, not finite, out of range: such a model is not attacked
CHECKS: list[Check[[Scene]]] = list(chain.from_iterable(map(checks_in, (answers, gradients, images))))


def check_model(
    model: Model, batch: Batch, attacks: Sequence[Attack] = (), *, gradient: bool = True, donors: Donors | None = None
) -> list[Finding]:
    """Findings on the model and the images; they cost about 20 passes over the batch.

    Of a model whose defence the attacks know, the gradient that they take is looked at.

    The model should be as the run uses it (`frozen`). Cases with organs tell more than empty ones.

    Args:
        gradient: whether the gradient is looked at, which scores of clean images do not depend on.
        donors: cases whose masks the goal of an attack may take.
    """
    return check_scene(scene_of(model, batch, attacks, donors), attacks, gradient=gradient)


def scene_of(model: Model, batch: Batch, attacks: Sequence[Attack], donors: Donors | None = None) -> Scene:
    """The model as the attacks know it, and its answers on the batch."""
    begin_stage("checking the model")
    model = bind(model, Setting(model.task, batch.cases, backward=backward_of(attacks)))
    with torch.no_grad():
        return Scene(model, batch, tuple(map(core, attacks)), model(batch.image), donors)


def check_scene(scene: Scene, attacks: Sequence[Attack], *, gradient: bool = True) -> list[Finding]:
    """The findings of `check_model` on a scene of these attacks."""
    model = scene.model
    if not torch.isfinite(scene.log_odds).all():
        return by_severity([*check_image_range(scene), *check_finite(scene)])
    findings = _ask(scene, "nothing")
    if not gradient or (isinstance(model, SegModel) and model.black_box):  # which has no gradient to ask for
        return by_severity(findings)
    is_random = any(finding.flag == check_repeated_passes.flag for finding in findings)
    if is_random and any(map(is_averaged, attacks)):  # they know it
        findings = [finding for finding in findings if finding.flag != check_repeated_passes.flag]
    broken = [*check_gradient_path(scene), *check_finite(scene)]
    if not broken:
        findings += _ask(scene, "a gradient")
        # a randomised model does not stand checks that compare passes with each other, nor a stand-in those of slopes
        findings += (
            [] if is_random or backward_of(attacks) != "own" else _ask(scene, "a gradient, and the same answer twice")
        )
    return by_severity(findings + broken)


def _ask(scene: Scene, needs: Needs) -> list[Finding]:
    """The findings of the checks that need this of the model, but for the two that say whether it has it."""
    checks = [check for check in CHECKS if check.flag.needs == needs]
    asked = [check for check in checks if check not in (check_gradient_path, check_finite)]
    findings = []
    for check in asked:
        begin_stage(f"checking the model: {check.flag.code}")
        findings += check(scene)
    return findings
