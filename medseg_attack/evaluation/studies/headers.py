"""The configuration that identifies a run in its folder, and the header of a finished one."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from medseg_attack.checks.attack_profile import uses_queries
from medseg_attack.evaluation.fitting import fit_faults, fit_seconds, must_fit
from medseg_attack.evaluation.studies.opened import OpenedStudy
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.grid import Cell
from medseg_attack.runs.reading import ids_of
from medseg_attack.runs.rows import ROWS_VERSION
from medseg_attack.runtime import FIRST, provenance, versions
from medseg_attack.storage.json_files import digest
from medseg_attack.types import CaseRef


def config_of(opened: OpenedStudy, model_ref: ModelRef, cell: Cell, refs: Sequence[CaseRef]) -> dict[str, Any]:
    """All that determines a run's rows, and nothing else: neither batch size nor device nor shard."""
    training_refs = opened.training_refs(model_ref, cell)
    return ({"fitted_on": digest(sorted(ref.id for ref in training_refs))} if training_refs else {}) | {
        "rows_version": ROWS_VERSION,
        "data": opened.data.fingerprint,
        "cases": digest(sorted(ref.id for ref in refs)),
        "weights": model_ref.weights_hash,
        "attack": cell.spec,
        "budget": str(cell.budget) if cell.budget else None,
        "metrics": sorted(opened.study.metrics),
        "seed": opened.study.seed,
    }


def header_of(
    opened: OpenedStudy, model_ref: ModelRef, cell: Cell, folder: RunFolder, refs: Sequence[CaseRef]
) -> dict[str, Any]:
    """All that tables say of a finished run and its computation, flags apart."""
    card = model_ref.card
    known_patients = opened.data.patients_with(model_ref.training_scans, refs)
    fit_time = {"fit_seconds": fit_seconds(folder)} if must_fit(cell.attack) else {}
    return {
        "model": model_ref.label,
        **ids_of(folder.path),
        "dims": model_ref.dims,
        "n_parameters": card.get("n_parameters", 0),
        "val_dice": _mean_of_known((card.get("val_dice") or {}).values()),
        "data": opened.data.name,
        "attack": cell.label,
        "role": cell.role,
        **({"knowledge": cell.knowledge} if cell.knowledge else {}),
        "loss": cell.loss,
        "eps": float(f"{folder.rows()['budget'].mean():.3g}") if cell.budget else cell.eps,  # the mean over cases
        "eps_unit": cell.attack.ball.unit,
        "ball": cell.ball,
        "split": opened.study.split,
        "cases": len(refs),
        "partial": opened.leaves_out(model_ref),
        **({"trained_on": len(known_patients)} if known_patients else {}),
        "device": str(opened.device),
        "batch_size": max(folder.batch_sizes, default=opened.options.batch_size or FIRST),
        "seconds": folder.seconds + sum(fit_time.values()),
        **fit_time,
        **fit_faults(folder),
        **({"queries": True} if uses_queries(cell.attack) else {}),
        **({"prompt": model_ref.prompt} if model_ref.prompt else {}),
        "versions": versions(),
        "provenance": provenance(),
    }


def _mean_of_known(scores: Iterable[float | None]) -> float | None:
    """The mean of the scores of organs that the validation patients have; None if they have none."""
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else None
