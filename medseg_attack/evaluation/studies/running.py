"""Running a study: every model under every attack, each pair a run of its own in the study's folder."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medseg_attack.checks import stored
from medseg_attack.evaluation.fitting import Batches, fitted, must_fit
from medseg_attack.evaluation.loop import PendingRun, run_attacks
from medseg_attack.evaluation.studies.examining import examine
from medseg_attack.evaluation.studies.headers import config_of, header_of
from medseg_attack.evaluation.studies.opened import OpenedStudy
from medseg_attack.evaluation.studies.refusals import refuse_unrunnable
from medseg_attack.exports.copies import MANIFEST
from medseg_attack.exports.segmentations import write_segmentations
from medseg_attack.exports.writing import export
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.runs.chunks import chunks
from medseg_attack.runs.claim import claim, withdraw
from medseg_attack.runs.folder import COPIES, RunFolder
from medseg_attack.runs.grid import Cell
from medseg_attack.runs.stored_files import HEADER_FILE, read_header
from medseg_attack.runtime import deterministic
from medseg_attack.storage.heartbeats import at_work, clear
from medseg_attack.storage.locks import locked
from medseg_attack.storage.stages import begin_stage
from medseg_attack.types import CaseRef

COMPUTATION = ("device", "batch_size", "versions", "provenance")  # fields of a header that say how it was computed


def run(opened: OpenedStudy, models: Sequence[ModelRef] | None = None) -> Iterator[int]:
    """Runs what is missing and writes it chunk by chunk.

    Args:
        models: those of the study that are attacked now; None: all of them.

    Yields:
        The number of (case, attack) pairs that are done since the last time.

    Raises:
        InputError: the folder holds another study; a checkpoint does not fit the data.
    """
    runs = [(model_ref, opened.runs(model_ref)) for model_ref in models or opened.models]
    metrics = refuse_unrunnable(opened)
    with locked(opened.out, shared=True) as lock:  # shards may run at the same time
        is_new = claim(opened.out, opened.identity, _stored(opened))
        try:
            with at_work(opened.out, "{}/{}".format(*opened.options.shard), str(opened.device), opened.cases_by_run):
                for model_ref, runs_on_model in runs:
                    yield from _run_model(opened, model_ref, runs_on_model, metrics)
            if opened.is_finished:
                clear(opened.out)
        except (Exception, SystemExit):
            if is_new and lock.is_alone() and not any(opened.out.rglob("*.parquet")):
                withdraw(opened.out, map(opened.folder, opened.models))  # nothing was computed: leave nothing behind
            raise


def claim_folder(opened: OpenedStudy) -> None:
    """Writes the study into its folder, for other processes that will run it.

    Raises:
        InputError: it cannot be run, or the folder holds another study.
    """
    refuse_unrunnable(opened)
    with locked(opened.out, shared=True):
        claim(opened.out, opened.identity, _stored(opened))


def _stored(opened: OpenedStudy) -> str:
    """The study as its folder holds it."""
    return yaml.safe_dump(opened.study.model_dump(), sort_keys=False)


def _run_model(
    opened: OpenedStudy, model_ref: ModelRef, runs: Sequence[tuple[Cell, Path]], metrics: Mapping[str, Any]
) -> Iterator[int]:
    """Runs every attack on one model and finishes its runs."""
    refs = opened.refs(model_ref)
    begin_stage(f"loading {model_ref.label}")
    model = model_ref.load(opened.data.task, opened.device)
    folders = [RunFolder.open(folder, config_of(opened, model_ref, cell, refs)) for cell, folder in runs]
    finished = {folder.path: read_header(folder.path) for folder in folders if _is_finished(folder, refs)}
    with frozen(model), deterministic(opened.device), model_ref.errors_named():
        pending = []
        for number, ((cell, _), folder) in enumerate(zip(runs, folders, strict=True), opened.first_run(model_ref)):
            batches = Batches.of(opened.data, opened.training_refs(model_ref, cell), opened.device)
            if must_fit(cell.attack):
                begin_stage(f"fitting {cell.label}")
            attack = fitted(cell.attack, model, batches, folder, opened.study.seed)
            pending.append(PendingRun(attack, folder, cell.budget, number))
        if opened.options.checks:
            examine(opened, model, model_ref, [cell for cell, _ in runs], refs)
        begin_stage("attacking")
        yield from run_attacks(
            model,
            opened.data,
            pending,
            refs,
            batch_size=opened.options.batch_size,
            device=opened.device,
            metrics=metrics,
            seed=opened.study.seed,
            shard=opened.options.shard,
            keep_images=opened.options.save != "none",
            donors=opened.donors(model_ref),
        )
    _finish(opened, model_ref, model, runs, refs, finished)


def _is_finished(folder: RunFolder, refs: Sequence[CaseRef]) -> bool:
    return (folder.path / HEADER_FILE).exists() and _is_whole(folder, refs)


def _is_whole(folder: RunFolder, refs: Sequence[CaseRef]) -> bool:
    """Whether every chunk is on disk, whichever shard wrote it."""
    return all(folder.has(number) for number in range(len(chunks(refs))))


def _finish(
    opened: OpenedStudy,
    model_ref: ModelRef,
    model: SegModel,
    runs: Sequence[tuple[Cell, Path]],
    refs: Sequence[CaseRef],
    finished: Mapping[Path, dict[str, Any]],
) -> None:
    """Writes the headers of runs whose every chunk is on disk.

    Args:
        finished: headers of the runs that were finished before; what they say of their computation stays true.
    """
    headers = {
        path: header_of(opened, model_ref, cell, RunFolder(path), refs)
        | {key: value for key, value in finished.get(path, {}).items() if key in COMPUTATION}
        for cell, path in runs
        if _is_whole(RunFolder(path), refs)
    }
    flags: dict[Path, Any] = {path: finished.get(path, {}).get("flags") for path in headers}
    if opened.options.checks:
        flags = stored.of_runs(headers, stored.read_before(opened.folder(model_ref)))
    for path, header in headers.items():
        checked = {"checks": flags[path] is not None} | ({} if flags[path] is None else {"flags": flags[path]})
        RunFolder(path).finish(header | checked)
        if opened.options.save != "none":
            if not (path / COPIES / MANIFEST).exists():
                begin_stage("writing perturbed scans")
                export(path, opened.data, refs, opened.options.save, keep_headers=opened.options.keep_headers)
            with deterministic(opened.device):
                write_segmentations(path, opened.data, model, opened.device)
