"""The flags of a model, written beside its runs before they start."""

from collections.abc import Sequence

import numpy as np

from medseg_attack import registry
from medseg_attack.checks import stored
from medseg_attack.checks.attack_profile import asks_model
from medseg_attack.checks.flags import Finding
from medseg_attack.checks.model.answers import check_case_alone
from medseg_attack.checks.model.asking import check_model
from medseg_attack.checks.probes import preflight
from medseg_attack.data.prepared.subsets import informative
from medseg_attack.errors import InputError
from medseg_attack.evaluation.crafting import case_budgets
from medseg_attack.evaluation.studies.opened import OpenedStudy
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.noise import noise_of
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.grid import Cell
from medseg_attack.types import Attack, Batch, CaseRef, Donors, Model

CASE_ALONE = check_case_alone.flag.code


def examine(
    opened: OpenedStudy, model: SegModel, model_ref: ModelRef, cells: Sequence[Cell], refs: Sequence[CaseRef]
) -> None:
    """Writes the flags of a model beside its runs, once.

    Raises:
        InputError: an attack needs gradients and the model has none, or the answers depend on the batch size and some
            were computed with another.
    """
    folder = opened.folder(model_ref)
    if not (folder / stored.FILE).exists():
        _write_findings(opened, model, model_ref, cells, refs)
    if any(finding.code == CASE_ALONE for finding in stored.read_before(folder)):
        _check_batch_size(opened, model_ref)


def _check_batch_size(opened: OpenedStudy, model_ref: ModelRef) -> None:
    """Refuses to go on with, or to show again, rows that were computed with another batch size."""
    size = opened.options.batch_size
    for _, folder in opened.runs(model_ref):
        other = [str(n) for n in RunFolder(folder).batch_sizes if n != size]
        if size is None:
            raise InputError(
                f"expected a number for --batch-size, got auto, while the answers of {model_ref.name} depend on the "
                f"batch ({CASE_ALONE}); use --batch-size {', '.join(other) or 1}"
            )
        if other:
            raise InputError(
                f"expected --batch-size {', '.join(other)}, with which {folder} was computed, got {size}, while the "
                f"answers of {model_ref.name} depend on the batch ({CASE_ALONE}); use that batch size, or another --out"
            )


def _write_findings(
    opened: OpenedStudy, model: SegModel, model_ref: ModelRef, cells: Sequence[Cell], refs: Sequence[CaseRef]
) -> None:
    cases = informative(opened.data, refs)
    findings = findings_before(
        model, Batch.of(cases, opened.device), cells, opened.donors(model_ref), black_box=model.black_box
    )
    stored.write_before(opened.folder(model_ref), findings, [case.id for case in cases])


def findings_before(
    model: Model, batch: Batch, cells: Sequence[Cell], donors: Donors, *, black_box: bool
) -> list[Finding]:
    """The findings on a model before its runs.

    Args:
        batch: a few cases with organs.
        donors: cases whose masks the goal of an attack may take.
        black_box: whether the model has no gradient, which the probes climb.
    """
    attacks = [_at_budget(cell, batch) for cell in cells]
    if not any(map(asks_model, attacks)):
        return check_model(model, batch, attacks, gradient=False, donors=donors)
    if black_box:
        return check_model(model, batch, attacks, donors=donors)
    pairs = zip(attacks, cells, strict=True)
    typed = {attack.ball.eps: str(cell.budget) for attack, cell in pairs if cell.budget is not None}
    return preflight(model, batch, attacks, typed, donors)


def _at_budget(cell: Cell, batch: Batch) -> Attack:
    """The cell's attack; one whose budget has a unit at the mean of what that is on the cases of the batch."""
    if cell.budget is None:
        return cell.attack
    budgets = case_budgets(batch.cases, noise_of(batch.image), cell.budget)
    attack: Attack = registry.with_eps(cell.attack, float(np.mean([case.budget for case in budgets])))
    return attack
