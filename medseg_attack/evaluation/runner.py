"""Running a study: every model under every attack, each pair a run of its own in the study's folder."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from medseg_attack import registry
from medseg_attack.checks import stored
from medseg_attack.checks.attack_profile import uses_queries
from medseg_attack.checks.model import check_model
from medseg_attack.checks.probes import preflight
from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.data.prepared.subsets import informative, limit
from medseg_attack.errors import InputError
from medseg_attack.evaluation.fitting import Batches, check_fit, fit_seconds, fitted, must_fit
from medseg_attack.evaluation.loop import PendingRun, run_attacks
from medseg_attack.exports.copies import copies_of
from medseg_attack.exports.segmentations import write_segmentations
from medseg_attack.exports.verification import FOLDER, MANIFEST
from medseg_attack.exports.writing import export
from medseg_attack.files import digest, whole, write_json
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.models.surrogates import pin_surrogates, surrogates
from medseg_attack.registry.parts import told
from medseg_attack.runs.chunks import chunks
from medseg_attack.runs.folder import RunFolder, refuse_other
from medseg_attack.runs.grid import Cell, cells, safe
from medseg_attack.runs.rows import ROWS_VERSION
from medseg_attack.runs.study import Study
from medseg_attack.runtime import deterministic, versions
from medseg_attack.threat.balls.regions import check_organ
from medseg_attack.types import Batch, CaseRef


@dataclass(frozen=True)
class OpenedStudy:
    """A study with its data opened and its models found.

    Attributes:
        batch_size: changes no score by more than float32 kernels do.
        shard: k, N: only every N-th chunk, from the k-th, is run here.
        save: which perturbed scans are written: "all", "worst:N" (the N files with the lowest Dice) or "none".
        keep_headers: whether perturbed scans keep the headers of the patients.
        checks: whether model and rows are looked at for what makes their numbers doubtful.
    """

    study: Study
    data: Prepared
    models: tuple[ModelRef, ...]
    out: Path
    device: torch.device
    batch_size: int = 16
    shard: tuple[int, int] = (0, 1)
    save: str = "none"
    keep_headers: bool = False
    checks: bool = False

    def refs(self, model: ModelRef) -> list[CaseRef]:
        """The cases of the study's split, slices or scans as the model takes them."""
        refs = self.data.refs(self.study.split, self.study.fold, model.dims)
        return limit(refs, self.study.limit)

    def runs(self) -> list[tuple[ModelRef, Cell, Path]]:
        """Model, attack and folder of every run."""
        return [
            (model, cell, self.out / _model_name(model) / f"{i:02d}_{cell.slug}")
            for model in self.models
            for i, cell in enumerate(self.cells(model))
        ]

    def cells(self, model: ModelRef) -> list[Cell]:
        """The study's attacks on that model, with the weights that they bring along named."""
        models = [Path(one.name) for one in self.models]
        return [
            replace(cell, attack=pin_surrogates(cell.attack, Path(model.name), models)) for cell in cells(self.study)
        ]

    @property
    def total(self) -> int:
        """How many (case, attack) pairs there are."""
        return sum(len(self.refs(model)) for model in self.models) * len(cells(self.study))


def default_out(workspace: Path, benchmark: OpenedStudy) -> Path:
    """A folder of the study's own: the same study on the same data and weights always gets the same one."""
    return workspace / "runs" / f"{benchmark.data.name}-{digest(_identity(benchmark))[:8]}"


def run(benchmark: OpenedStudy) -> Iterator[tuple[int, int]]:
    """Runs what is missing and writes it chunk by chunk.

    Yields:
        (case, attack) pairs done since the last time, and how many there are.

    Raises:
        InputError: the folder holds another study; a checkpoint does not fit the data.
    """
    fresh = not benchmark.out.exists()
    try:
        yield from _run(benchmark)
    except InputError:
        if fresh and not any(benchmark.out.rglob("*.parquet")):  # nothing was computed: leave nothing behind
            shutil.rmtree(benchmark.out, ignore_errors=True)
        raise


def _run(benchmark: OpenedStudy) -> Iterator[tuple[int, int]]:
    runs, total = benchmark.runs(), benchmark.total
    if not total:
        raise InputError(
            f"expected cases in the {benchmark.study.split} split of {benchmark.data.root}, got none; check --split"
        )
    for model_ref in benchmark.models:
        refs = benchmark.refs(model_ref)
        _check_levels(benchmark, refs)
        for cell in cells(benchmark.study):
            told(cell.attack, "within", benchmark.data.task)  # an unknown organ is told before anything slow happens
            check_fit(cell.label, cell.budget, training_cases(benchmark, model_ref, cell), refs)
    metrics = {text: registry.build(text, "metric") for text in benchmark.study.metrics}
    _claim(benchmark)
    for model_ref in benchmark.models:
        refs = benchmark.refs(model_ref)
        model = model_ref.load(benchmark.data.task, benchmark.device)
        mine = [(cell, folder) for of, cell, folder in runs if of == model_ref]
        opened = [RunFolder.open(folder, _config(benchmark, model_ref, cell, refs)) for cell, folder in mine]
        with frozen(model), deterministic(benchmark.device), model_ref.named():
            todo = [
                PendingRun(_fitted(benchmark, model_ref, model, cell, folder), folder, cell.budget)
                for (cell, _), folder in zip(mine, opened, strict=True)
            ]
            if benchmark.checks:
                _check_model(benchmark, model, model_ref, [cell for cell, _ in mine], refs)
            for done in run_attacks(
                model,
                benchmark.data,
                todo,
                refs,
                batch_size=benchmark.batch_size,
                device=benchmark.device,
                metrics=metrics,
                seed=benchmark.study.seed,
                shard=benchmark.shard,
                keep_images=benchmark.save != "none",
            ):
                yield done, total
        _finish(benchmark, model_ref, model, mine, refs)
        del model  # before the next one takes its memory


def _fitted(benchmark: OpenedStudy, model_ref: ModelRef, model: SegModel, cell: Cell, folder: RunFolder) -> Any:
    """The cell's attack, fitted on the training patients of the study's fold if it learns."""
    batches = Batches.of(benchmark.data, training_cases(benchmark, model_ref, cell), benchmark.device)
    attack = fitted(cell.attack, model, batches, folder, benchmark.study.seed)
    return bind_data(attack, benchmark, model_ref)


def training_cases(benchmark: OpenedStudy, model_ref: ModelRef, cell: Cell) -> Sequence[CaseRef]:
    """The cases that an attack is fitted on, none if it does not learn."""
    return benchmark.data.refs("train", benchmark.study.fold, model_ref.dims) if must_fit(cell.attack) else ()


def bind_data(attack: Any, benchmark: OpenedStudy, model_ref: ModelRef) -> Any:
    """The attack with the data that it may draw from: the split's, whatever the limit."""
    refs = benchmark.data.refs(benchmark.study.split, benchmark.study.fold, model_ref.dims)
    return told(attack, "among", benchmark.data, refs)


def _check_levels(benchmark: OpenedStudy, refs: Sequence[CaseRef]) -> None:
    """Refuses a budget that no scan can hold, a region that no scan has, and to store what cannot be written back."""
    if benchmark.study.region:
        check_organ(benchmark.study.region, benchmark.data.task.classes)
    finest = min(benchmark.data.level(ref) for ref in refs)
    for cell in cells(benchmark.study):
        if 0 < cell.attack.ball.eps < finest * (1 - 1e-9) and registry.spec_of(cell.attack.ball).name == "linf":
            raise InputError(
                f"expected eps of one stored value or more, got {registry.spec(cell.eps)} where one is {finest:.3g} of "
                f"the window in the finest scan of {benchmark.data.root}; take a larger eps, such as 1raw"
            )
    if benchmark.save != "none":
        for cell in cells(benchmark.study):
            if hasattr(cell.attack.ball, "length"):
                raise InputError(
                    f"expected attacks that leave anatomy where it is, got {cell.label.removeprefix('noise ')}; its "
                    "scans need a truth of their own, which is not written: --save-adversarial none"
                )
        for scan in {ref.volume for ref in refs}:
            copies_of(benchmark.data.records[scan])


def _claim(benchmark: OpenedStudy) -> None:
    """Writes the resolved study beside the results, or checks that what is there is of the same one.

    study.yaml can be run again with --config; identity.json is what is compared, since paths may be written otherwise.
    """
    file = benchmark.out / "identity.json"
    if file.exists():
        refuse_other(file, _identity(benchmark), "results")
        return
    if benchmark.out.is_dir() and any(benchmark.out.iterdir()):
        raise InputError(
            f"expected {benchmark.out} to be new or to hold this study, got a folder of other things; "
            "choose another --out"
        )
    with whole(benchmark.out / "study.yaml") as part:
        part.write_text(yaml.safe_dump(benchmark.study.model_dump(), sort_keys=False), encoding="utf-8")
    write_json(file, _identity(benchmark))


def _identity(benchmark: OpenedStudy) -> dict[str, Any]:
    study = benchmark.study.model_dump(exclude={"data", "models"})
    weights = sorted(model.weights for model in benchmark.models)
    brought = sorted({name for _, cell, _ in benchmark.runs() for name in surrogates(cell.attack)})
    return (
        study
        | {"data": benchmark.data.fingerprint, "weights": weights, "save_adversarial": benchmark.save}
        | ({"surrogates": brought} if brought else {})
        | ({"keep_headers": True} if benchmark.keep_headers else {})
    )


def _config(benchmark: OpenedStudy, model_ref: ModelRef, cell: Cell, refs: Sequence[CaseRef]) -> dict[str, Any]:
    """All that determines a run's rows, and nothing else: neither batch size nor device nor shard."""
    learned_from = training_cases(benchmark, model_ref, cell)
    return ({"fitted_on": digest(sorted(ref.id for ref in learned_from))} if learned_from else {}) | {
        "rows_version": ROWS_VERSION,
        "data": benchmark.data.fingerprint,
        "cases": digest(sorted(ref.id for ref in refs)),
        "weights": model_ref.weights,
        "attack": cell.spec,
        "budget": str(cell.budget) if cell.budget else None,
        "metrics": sorted(benchmark.study.metrics),
        "seed": benchmark.study.seed,
    }


def _check_model(
    benchmark: OpenedStudy, model: SegModel, model_ref: ModelRef, mine: Sequence[Cell], refs: Sequence[CaseRef]
) -> None:
    """Writes what is doubtful about a model beside its runs, once.

    Raises:
        InputError: attacks by gradients are asked of a model that has none.
    """
    folder = benchmark.out / _model_name(model_ref)
    if (folder / stored.FILE).exists():
        return
    cases = informative(benchmark.data, refs)
    attacks = [cell.attack for cell in mine]
    # the probes climb gradients, which a black box has none of
    findings = (check_model if model.black_box else preflight)(model, Batch.of(cases, benchmark.device), attacks)
    if any(one.code == "MA002" for one in findings) and any(hasattr(attack, "objective") for attack in attacks):
        raise InputError(
            f"expected a gradient of the output of {model_ref.name} by the image, got none (MA002); "
            "remove detach() and no_grad() from the model"
        )
    stored.write_before(folder, findings, [case.id for case in cases])


def _finish(
    benchmark: OpenedStudy,
    model_ref: ModelRef,
    model: SegModel,
    mine: Sequence[tuple[Cell, Path]],
    refs: Sequence[CaseRef],
) -> None:
    """Writes the headers of runs whose every chunk is there, whoever wrote it."""
    n = len(chunks(refs))
    headers = {
        path: _header(benchmark, model_ref, cell, RunFolder(path), refs)
        for cell, path in mine
        if all(RunFolder(path).has(number) for number in range(n))
    }
    flags: dict[Path, Any] = {}
    if benchmark.checks:
        flags = stored.of_runs(headers, stored.read_before(benchmark.out / _model_name(model_ref)))
    for path, header in headers.items():
        RunFolder(path).finish(header | ({"flags": flags[path]} if benchmark.checks else {}))
        if benchmark.save != "none":
            if not (path / FOLDER / MANIFEST).exists():
                export(path, benchmark.data, refs, benchmark.save, keep_headers=benchmark.keep_headers)
            with deterministic(benchmark.device):
                write_segmentations(path, benchmark.data, model, benchmark.device)


def _header(
    benchmark: OpenedStudy, model_ref: ModelRef, cell: Cell, folder: RunFolder, refs: Sequence[CaseRef]
) -> dict[str, Any]:
    card = model_ref.card
    learning = {"fit_seconds": fit_seconds(folder)} if must_fit(cell.attack) else {}
    return {
        "model": model_ref.label,
        "dims": model_ref.dims,
        "n_parameters": card["n_parameters"],
        "val_dice": float(np.mean(list(card["val_dice"].values()))) if card.get("val_dice") else None,
        "data": benchmark.data.name,
        "attack": cell.label,
        "role": cell.role,
        "loss": cell.loss,
        "eps": _eps(cell, folder),
        "ball": cell.ball,
        "split": benchmark.study.split,
        "cases": len(refs),
        "partial": benchmark.study.limit is not None,
        "device": str(benchmark.device),
        "batch_size": benchmark.batch_size,
        "seconds": folder.seconds + sum(learning.values()),
        **learning,
        **({"queries": True} if uses_queries(cell.attack) else {}),
        "versions": versions(),
    }


def _eps(cell: Cell, folder: RunFolder) -> float:
    """The budget as a fraction of the window; with a unit it is the mean over cases, to three digits."""
    return float(f"{folder.rows()['budget'].mean():.3g}") if cell.budget else cell.eps


def with_distinct_labels(models: Sequence[ModelRef]) -> tuple[ModelRef, ...]:
    """The models; those that share a label with another have their folder in it, by its name if that is enough."""
    uses = Counter(model.label for model in models)
    folders = Counter(Path(model.name).name for model in models)

    def named(model: ModelRef) -> ModelRef:
        place = Path(model.name).name if folders[Path(model.name).name] == 1 else model.name
        return replace(model, card={**model.card, "label": f"{model.label} ({place})"})

    return tuple(model if uses[model.label] == 1 else named(model) for model in models)


def _model_name(model_ref: ModelRef) -> str:
    return f"{safe(model_ref.label)[:80]}-{model_ref.weights[:6]}"
