"""Running a study: every model under every attack, each pair a run of its own in the study's folder."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from medseg_attack import registry
from medseg_attack.attacks.composed.adaptive import core
from medseg_attack.attacks.controls.worst_prompt import WorstPrompt
from medseg_attack.checks import stored
from medseg_attack.checks.attack_profile import asks_model, uses_queries
from medseg_attack.checks.model.answers import check_case_alone
from medseg_attack.checks.model.asking import check_model
from medseg_attack.checks.model.gradients import check_gradient_path
from medseg_attack.checks.probes import preflight
from medseg_attack.checks.prompts import check_prompts
from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.data.prepared.subsets import informative, limit
from medseg_attack.detectors.combined.saved import Saved
from medseg_attack.errors import InputError, plural
from medseg_attack.evaluation.crafting import case_budgets
from medseg_attack.evaluation.fitting import Batches, check_fit, fit_faults, fit_seconds, fitted, must_fit
from medseg_attack.evaluation.knowledge import knowing, needed
from medseg_attack.evaluation.loop import PendingRun, run_attacks
from medseg_attack.exports.copies import MANIFEST
from medseg_attack.exports.segmentations import write_segmentations
from medseg_attack.exports.writing import export, require_copies
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.models.surrogates import pin_surrogates, surrogates
from medseg_attack.registry.abilities import Climbs
from medseg_attack.registry.parts import walk
from medseg_attack.runs.chunks import chunks, in_shard
from medseg_attack.runs.claim import claim, withdraw
from medseg_attack.runs.folder import COPIES, RunFolder
from medseg_attack.runs.grid import Cell, safe
from medseg_attack.runs.reading import ids_of
from medseg_attack.runs.rows import ROWS_VERSION
from medseg_attack.runs.stored_files import HEADER_FILE, read_header
from medseg_attack.runs.study import Study
from medseg_attack.runtime import FIRST, deterministic, provenance, versions
from medseg_attack.storage.files import digest, inside, require_outside
from medseg_attack.storage.heartbeats import at_work, clear
from medseg_attack.storage.locks import locked
from medseg_attack.threat.balls.regions import check_organ
from medseg_attack.threat.binding import bind
from medseg_attack.threat.budgets import UNITS
from medseg_attack.types import Batch, CaseRef, Donors, Setting, common

COMPUTATION = ("device", "batch_size", "versions", "provenance")  # fields of a header that say how it was computed
CASE_ALONE = check_case_alone.flag.code


@dataclass(frozen=True)
class RunOptions:
    """How a study is run; of these only `save` and `keep_headers` are part of what identifies its results.

    Attributes:
        batch_size: cases at a time, None to find the number (see `BatchSize`); changes no score by more than float32
            kernels do, unless MA004 is raised, or an attack on the Dice of volumes meets volumes of more slices than
            that.
        shard: k, N: only the k-th of N parts of the work is run here.
        save: which perturbed scans are written: "all", "worst:N" (the N files with the lowest Dice) or "none".
        keep_headers: whether perturbed scans keep the headers of the patients.
        checks: whether model and rows are examined for what makes their numbers doubtful.
    """

    batch_size: int | None = 16
    shard: tuple[int, int] = (0, 1)
    save: str = "none"
    keep_headers: bool = False
    checks: bool = False


@dataclass(frozen=True)
class OpenedStudy:
    """A study whose attacks are parsed, whose data set is open and whose models are found.

    Attributes:
        grid: the study's attacks at their budgets.
        out: folder of the results.
    """

    study: Study
    grid: tuple[Cell, ...]
    data: Prepared
    models: tuple[ModelRef, ...]
    out: Path
    device: torch.device
    options: RunOptions = RunOptions()

    def refs(self, model: ModelRef) -> list[CaseRef]:
        """The cases of the study's split, slices or scans as the model takes them."""
        refs = self.data.refs(self.study.split, self.study.fold, model.dims)
        return limit(refs, self.study.limit, whole_scans=bool(self.study.metrics))

    def cells(self, model: ModelRef) -> list[Cell]:
        """The study's attacks on that model: they know its defence, and the hash of their surrogates' weights."""
        folders = [Path(model_ref.name) for model_ref in self.models]
        pinned = (replace(cell, attack=pin_surrogates(cell.attack, Path(model.name), folders)) for cell in self.grid)
        return [knowing(cell, model, native=self.study.native) for cell in pinned]

    def folder(self, model: ModelRef) -> Path:
        """The folder of all runs on that model."""
        return inside(self.out, f"{safe(model.label)[:80]}-{model.weights_hash[:6]}")

    def runs(self, model: ModelRef) -> list[tuple[Cell, Path]]:
        """Attack and folder of every run on that model."""
        return [(cell, self.folder(model) / f"{i:02d}_{cell.slug}") for i, cell in enumerate(self.cells(model))]

    @property
    def run_folders(self) -> list[Path]:
        """The folders of all runs, model by model."""
        return [folder for model in self.models for _, folder in self.runs(model)]

    @property
    def cases_by_run(self) -> dict[str, int]:
        """The number of cases of every run, whichever shard attacks them, by the run's folder in that of the study."""
        counts = {model: len(self.refs(model)) for model in self.models}
        pairs = ((folder, counts[model]) for model in self.models for _, folder in self.runs(model))
        return {folder.relative_to(self.out).as_posix(): count for folder, count in pairs}

    @property
    def is_finished(self) -> bool:
        """Whether every run has its header."""
        return all((folder / HEADER_FILE).exists() for folder in self.run_folders)

    @property
    def total(self) -> int:
        """Number of (case, attack) pairs of this shard."""
        return sum(sum(self.cases_of_runs(model)) for model in self.models)

    def first_run(self, model: ModelRef) -> int:
        """The number in the study of the first run on that model."""
        return self.models.index(model) * len(self.grid)

    def cases_of_runs(self, model: ModelRef) -> list[int]:
        """The number of cases that this shard attacks in each run on that model."""
        groups, first = chunks(self.refs(model)), self.first_run(model)
        return [
            sum(len(group) for n, group in enumerate(groups) if in_shard(n, run, len(groups), self.options.shard))
            for run in range(first, first + len(self.grid))
        ]

    @property
    def identity(self) -> dict[str, Any]:
        """All that determines the study's results: two studies with the same identity may share a folder."""
        pinned = sorted(
            {name for model in self.models for cell in self.cells(model) for name in surrogates(cell.attack)}
        )
        return (
            self.study.model_dump(exclude={"data", "models"} | (set() if self.study.native else {"native"}))
            | {
                "data": self.data.fingerprint,
                "weights": sorted(model.weights_hash for model in self.models),
                "save_adversarial": self.options.save,
            }
            | ({"surrogates": pinned} if pinned else {})
            | ({"keep_headers": True} if self.options.keep_headers else {})
        )

    @property
    def summary(self) -> str:
        """The data, the models and the device, in a sentence."""
        models = ", ".join(f"model {name}" for name in self.study.models)
        return f"data {self.data.root}; {models}; on {self.device}"

    @property
    def notes(self) -> list[str]:
        """Sentences that a reader of the study should know before it runs."""
        notes = []
        units = {cell.attack.ball.unit: cell for cell in self.grid if cell.role == "attack" and self.study.eps}
        if len(units) > 1:
            meanings = [f"{unit or UNITS['']} for {cell.label}" for unit, cell in units.items()]
            notes.append(f"--eps {', '.join(self.study.eps)} has several meanings: {', '.join(meanings)}")
        defended = [
            model for model in self.models if needed(model) and any(cell.knowledge for cell in self.cells(model))
        ]
        notes += [_knowledge_note(model, self.study.native) for model in defended]
        if self.study.limit is not None and self.study.metrics and any(model.dims == 2 for model in self.models):
            refs = self.refs(next(model for model in self.models if model.dims == 2))
            scans = plural(len({ref.volume for ref in refs}), "whole scan")
            notes.append(f"--limit {self.study.limit:g} takes {scans} ({len(refs)} slices), which --metric measures")
        return notes

    def require_cases(self) -> None:
        """Refuses a split without cases for one of the models."""
        if not all(map(self.refs, self.models)):
            raise InputError(
                f"expected cases in the {self.study.split} split of {self.data.root}, got none; choose another --split"
            )


def _knowledge_note(model: ModelRef, native: bool) -> str:
    """The knowledge that attacks on a defended model have, in a sentence."""
    facts = {
        "is random": model.is_random,
        "has layers without a useful gradient": model.blocks_gradient,
        "has another way through it": bool(model.known_by),
    }
    text = f"{model.label} {' and '.join(fact for fact, holds in facts.items() if holds)}"
    if native:
        return f"{text}: with --native attacks do not know it, and their numbers are called non_adaptive"
    return f"{text}: attacks know it ({' and '.join(reversed(needed(model)))}), unless --native"


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
        except Exception:
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


def refuse_unrunnable(opened: OpenedStudy) -> dict[str, Any]:
    """Refuses what cannot be run, before anything slow happens; the metrics of the study, built.

    Raises:
        InputError: the sentence says what cannot be run.
    """
    metrics = {text: registry.build(text, "metric") for text in opened.study.metrics}
    opened.require_cases()
    require_outside(opened.out, Path(opened.data.options["source"]))
    for model_ref in opened.models:
        _check_study(opened, model_ref)
    return metrics


def _run_model(
    opened: OpenedStudy, model_ref: ModelRef, runs: Sequence[tuple[Cell, Path]], metrics: Mapping[str, Any]
) -> Iterator[int]:
    """Runs every attack on one model and finishes its runs."""
    refs = opened.refs(model_ref)
    model = model_ref.load(opened.data.task, opened.device)
    folders = [RunFolder.open(folder, _config(opened, model_ref, cell, refs)) for cell, folder in runs]
    finished = {folder.path: read_header(folder.path) for folder in folders if _is_finished(folder, refs)}
    with frozen(model), deterministic(opened.device), model_ref.errors_named():
        pending = []
        for number, ((cell, _), folder) in enumerate(zip(runs, folders, strict=True), opened.first_run(model_ref)):
            batches = Batches.of(opened.data, training_cases(opened, model_ref, cell), opened.device)
            attack = fitted(cell.attack, model, batches, folder, opened.study.seed)
            pending.append(PendingRun(attack, folder, cell.budget, number))
        if opened.options.checks:
            _check_model(opened, model, model_ref, [cell for cell, _ in runs], refs)
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
            donors=donors_of(opened, model_ref),
        )
    _finish(opened, model_ref, model, runs, refs, finished)


def _is_finished(folder: RunFolder, refs: Sequence[CaseRef]) -> bool:
    return (folder.path / HEADER_FILE).exists() and _is_whole(folder, refs)


def _is_whole(folder: RunFolder, refs: Sequence[CaseRef]) -> bool:
    """Whether every chunk is on disk, whichever shard wrote it."""
    return all(folder.has(number) for number in range(len(chunks(refs))))


def training_cases(opened: OpenedStudy, model_ref: ModelRef, cell: Cell) -> Sequence[CaseRef]:
    """The cases that an attack is fitted on, none if it does not learn."""
    return opened.data.refs("train", opened.study.fold, model_ref.dims) if must_fit(cell.attack) else ()


def donors_of(opened: OpenedStudy, model_ref: ModelRef) -> Donors:
    """The cases whose masks a goal may take: the split's, whatever the limit."""
    refs = opened.data.refs(opened.study.split, opened.study.fold, model_ref.dims)
    return Donors(opened.data, tuple(refs))


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
        check_fit(cell.label, cell.budget, training_cases(opened, model_ref, cell), refs)


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


def _config(opened: OpenedStudy, model_ref: ModelRef, cell: Cell, refs: Sequence[CaseRef]) -> dict[str, Any]:
    """All that determines a run's rows, and nothing else: neither batch size nor device nor shard."""
    training_refs = training_cases(opened, model_ref, cell)
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


def _check_model(
    opened: OpenedStudy, model: SegModel, model_ref: ModelRef, cells: Sequence[Cell], refs: Sequence[CaseRef]
) -> None:
    """Writes the flags of a model beside its runs, once.

    Raises:
        InputError: an attack needs gradients and the model has none, or the answers depend on the batch size and some
            were computed with another.
    """
    folder = opened.folder(model_ref)
    if not (folder / stored.FILE).exists():
        _examine(opened, model, model_ref, cells, refs)
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


def _examine(
    opened: OpenedStudy, model: SegModel, model_ref: ModelRef, cells: Sequence[Cell], refs: Sequence[CaseRef]
) -> None:
    folder = opened.folder(model_ref)
    cases = informative(opened.data, refs)
    batch = Batch.of(cases, opened.device)
    attacks = [_at_budget(cell, batch) for cell in cells]
    if not any(map(asks_model, attacks)):
        findings = check_model(model, batch, attacks, gradient=False)
    else:  # the probes climb gradients, which a black box has none of
        findings = (check_model if model.black_box else preflight)(model, batch, attacks)
    no_path = any(finding.flag == check_gradient_path.flag for finding in findings)
    if no_path and any(isinstance(core(attack), Climbs) for attack in attacks):
        raise InputError(
            f"expected a gradient of the output of {model_ref.name} by the image, got none (MA002); "
            "remove detach() and no_grad() from the model"
        )
    stored.write_before(folder, findings, [case.id for case in cases])


def _at_budget(cell: Cell, batch: Batch) -> Any:
    """The cell's attack; one whose budget has a unit at the mean of what that is on the cases of the batch."""
    if cell.budget is None:
        return cell.attack
    budgets = case_budgets(batch.cases, batch.image, cell.budget)
    return registry.with_eps(cell.attack, float(np.mean([case.budget for case in budgets])))


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
        path: _header(opened, model_ref, cell, RunFolder(path), refs)
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
                export(path, opened.data, refs, opened.options.save, keep_headers=opened.options.keep_headers)
            with deterministic(opened.device):
                write_segmentations(path, opened.data, model, opened.device)


def _header(
    opened: OpenedStudy, model_ref: ModelRef, cell: Cell, folder: RunFolder, refs: Sequence[CaseRef]
) -> dict[str, Any]:
    card = model_ref.card
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
        "unit": cell.attack.ball.unit,
        "split": opened.study.split,
        "cases": len(refs),
        "partial": opened.study.limit is not None,
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
