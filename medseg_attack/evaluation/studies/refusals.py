"""Refusals of studies that cannot be run, before anything slow happens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg_attack import registry
from medseg_attack.attacks.controls.worst_prompt import WorstPrompt
from medseg_attack.checks.prompts import check_prompts
from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.detectors.combined.saved import Saved
from medseg_attack.errors import InputError
from medseg_attack.evaluation.fitting import check_fit
from medseg_attack.evaluation.studies.opened import OpenedStudy
from medseg_attack.exports.writing import require_copies
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.registry.parts import walk
from medseg_attack.runs.grid import Cell
from medseg_attack.runs.study import naming_file
from medseg_attack.storage.paths import require_outside
from medseg_attack.threat.balls.regions import check_organ
from medseg_attack.threat.binding import bind
from medseg_attack.types import CaseRef, Setting, common


def refuse_unrunnable(opened: OpenedStudy) -> dict[str, Any]:
    """Refuses what cannot be run, before anything slow happens; the metrics of the study, built.

    Raises:
        InputError: the sentence says what cannot be run.
    """
    with naming_file(opened.study):
        metrics = {text: registry.build(text, "metric") for text in opened.study.metrics}
        opened.require_cases()
        require_outside(opened.out, *opened.data.sources)
        for model_ref in opened.models:
            _check_study(opened, model_ref)
    return metrics


def _check_study(opened: OpenedStudy, model_ref: ModelRef) -> None:
    """Refuses, before anything slow happens, what cannot be run on the model's cases."""
    refs = opened.refs(model_ref)
    if opened.study.region:
        check_organ(opened.study.region, opened.data.task.classes)
    _check_budgets(opened, refs)
    if opened.options.save != "none":
        _check_storable(opened, refs)
    for cell in opened.grid:
        bind(cell.attack, Setting(opened.data.task))  # refuses an unknown organ
        check_prompts(cell.attack, cell.label.removeprefix("noise "), model_ref.prompt)
        for part in walk(cell.attack):
            if isinstance(part, Saved):
                part.loaded.require(Path(part.file), model_ref.weights_hash, opened.data.task)
        check_fit(cell.label, cell.budget, opened.training_refs(model_ref, cell), refs)


def _check_budgets(opened: OpenedStudy, refs: Sequence[CaseRef]) -> None:
    """Refuses a budget in Linf that is smaller than one stored value of every scan."""
    for cell in opened.grid:
        if registry.spec_of(cell.attack.ball.unrestricted).name != "linf":
            continue
        # in noise it is known when the image is read: the rows tell, by MA015
        shares = [(_fraction(opened.data, ref, cell), opened.data.level(ref)) for ref in refs]
        if all(0 < fraction < level * (1 - 1e-9) for fraction, level in shares):
            finest = min(level for _, level in shares)
            raise InputError(
                f"expected eps of one stored value or more, got {cell.budget or registry.spec(cell.eps)} where one is "
                f"{finest:.3g} of the window in the finest scan of {opened.data.root}; take a larger eps, such as 1raw"
            )


def _fraction(data: Prepared, ref: CaseRef, cell: Cell) -> float:
    """The budget of a cell on a case as a fraction of the window; NaN for one in the noise of the image."""
    if cell.budget is None:
        return float(cell.attack.ball.eps)
    width, slope = common(data.window(ref).width), abs(common(data.slope(ref)))
    return cell.budget.fraction(width=width, slope=slope, unit=data.window(ref).unit, noise=float("nan"), case=ref.id)


def _check_storable(opened: OpenedStudy, refs: Sequence[CaseRef]) -> None:
    """Refuses to store moved anatomy, what is no image, and scans whose format cannot be written back."""
    for cell in opened.grid:
        if cell.attack.ball.moves_anatomy:
            raise InputError(
                f"expected attacks that leave anatomy where it is, got {cell.label.removeprefix('noise ')}; its "
                "scans need a truth of their own, which is not written: --save-adversarial none"
            )
        if isinstance(cell.attack, WorstPrompt):
            raise InputError(
                f"expected attacks on images beside --save-adversarial, got {cell.label}, which changes none; run it "
                "by itself with --save-adversarial none"
            )
    for scan in dict.fromkeys(ref.volume for ref in refs):
        require_copies(opened.data, scan, keep_headers=opened.options.keep_headers)
