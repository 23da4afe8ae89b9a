"""Screening of new scans: a p-value for each scan, and the reason for an alarm."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from medseg_attack.data.formats.leaving_out import FLAG, is_left_out, leaving_out, refuse_unknown
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.data.prepared.unlabelled import prepare_unlabelled
from medseg_attack.detectors.base import Calibrated
from medseg_attack.detectors.files import SavedDetector
from medseg_attack.errors import InputError, plural
from medseg_attack.evaluation.detection.fitting import answer
from medseg_attack.evaluation.loop import in_batches
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.runs.chunks import chunks
from medseg_attack.runtime import deterministic
from medseg_attack.storage.json_files import differences
from medseg_attack.storage.stages import begin_stage
from medseg_attack.types import Batch, CaseRef, Task


def screen(
    scans: Path,
    saved: SavedDetector,
    model_ref: ModelRef,
    device: torch.device,
    *,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda n: None,
    leave_out: Sequence[str] = (),
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A row per scan of a folder, or of a prepared data set: score, p, most suspicious case and volume by class; and
    notes on what was not looked at, and why.

    New scans are prepared in a temporary folder, with the window, size and plane of the detector's data, and removed.

    Args:
        leave_out: names of scans, or patterns of such, that are not looked at.

    Raises:
        InputError: there is no scan, one cannot be read, or it is not of the model's kind.
    """
    begin_stage(f"loading {model_ref.label}")
    task = Task.from_json(saved.facts["task"])
    model = model_ref.load(task, device)
    size = 1 if model.dims == 3 else batch_size
    with TemporaryDirectory(prefix="medattack-") as folder:
        notes: tuple[str, ...] = ()
        if (scans / "dataset.json").is_file():
            data = open_prepared(scans)
            if data.task.classes != task.classes:
                raise InputError(
                    f"expected scans of the classes {', '.join(task.classes)}, got {', '.join(data.task.classes)} in "
                    f"{scans}; name another data set, or a folder of scans"
                )
            own = {name: data.options.get(name) for name in saved.facts["options"]}
            if differing := differences(saved.facts["options"], own):
                raise InputError(
                    f"expected scans prepared as those that the detector was calibrated on ({'; '.join(differing)}), "
                    f"got others in {scans}; prepare them so, or name a folder of scans"
                )
        elif model.prompt:
            raise InputError(
                f"expected a prepared data set for a model with prompts, which are drawn from the truth, got {scans}; "
                "prepare the scans with their masks"
            )
        else:
            begin_stage("reading the scans")
            with leaving_out(leave_out):
                data = prepare_unlabelled(scans, Path(folder) / "data", task, saved.facts["options"])
            notes, leave_out = data.notes, ()  # they were passed over
        cases = _kept(data.refs("all", 0, model.dims), leave_out, scans)
        begin_stage(f"looking at {plural(len({ref.volume for ref in cases}), 'scan')}")
        with frozen(model), deterministic(device), model_ref.errors_named(), torch.no_grad():
            refs = (refs for chunk in chunks(cases) for refs in in_batches(chunk, size))
            return scan_scores(saved.calibrated, model, _read(data, refs, device, advance)), notes


def _kept(cases: Sequence[CaseRef], leave_out: Sequence[str], data: Path) -> tuple[CaseRef, ...]:
    """The cases of a prepared data set whose scan is not left out."""
    with leaving_out(leave_out):
        kept = tuple(ref for ref in cases if not is_left_out(ref.volume))
        refuse_unknown()
    if not kept:
        raise InputError(f"{FLAG}: expected a scan of {data} that is not left out, got none; name fewer")
    return kept


def _read(
    data: Prepared, parts: Iterable[Sequence[CaseRef]], device: torch.device, advance: Callable[[int], None]
) -> Iterator[Batch]:
    for refs in parts:
        yield Batch.of([data.read(ref) for ref in refs], device)
        advance(len(refs))


def scan_scores(calibrated: Calibrated, model: SegModel, batches: Iterable[Batch]) -> pd.DataFrame:
    """A row per scan: score, most suspicious case, volume by class in pixels, and p.

    Args:
        model: frozen.

    Raises:
        InputError: the score of a case is no number.
    """
    rows: dict[str, dict[str, Any]] = {}
    for batch in batches:
        scores, masks = answer(calibrated.detector, model, batch.image, batch)
        pixels = masks.flatten(2).sum(2).tolist()
        for case, score, n_pixels in zip(batch.cases, scores, pixels, strict=True):
            row = rows.setdefault(case.volume, {"scan": case.volume, "score": -float("inf")})
            if score > row["score"]:
                row |= {"score": score, "case": case.id}
            for k in model.task.scored:
                name = f"pixels_{model.task.classes[k]}"
                row[name] = row.get(name, 0) + n_pixels[k]
    table = pd.DataFrame([rows[scan] for scan in sorted(rows)])
    return table.assign(p=calibrated.p_values(table["score"].tolist()))
