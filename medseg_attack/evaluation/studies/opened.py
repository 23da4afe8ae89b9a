"""An opened study: its grid, data set and models, and what follows from them before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.data.prepared.subsets import limit
from medseg_attack.errors import InputError, plural
from medseg_attack.evaluation.fitting import must_fit
from medseg_attack.evaluation.knowledge import knowing, needed
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.surrogates import pin_surrogates, surrogates
from medseg_attack.runs.chunks import chunks, in_shard
from medseg_attack.runs.grid import Cell, safe
from medseg_attack.runs.stored_files import HEADER_FILE
from medseg_attack.runs.study import Study
from medseg_attack.storage.paths import inside
from medseg_attack.threat.budgets import UNITS
from medseg_attack.types import CaseRef, Donors


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

    def leaves_out(self, model: ModelRef) -> bool:
        """Whether the limit leaves cases of the split out."""
        return len(self.refs(model)) < len(self.data.refs(self.study.split, self.study.fold, model.dims))

    @property
    def is_partial(self) -> bool:
        """Whether the limit leaves cases of the split out, of any model."""
        return any(map(self.leaves_out, self.models))

    def training_refs(self, model: ModelRef, cell: Cell) -> Sequence[CaseRef]:
        """The cases that an attack on that model is fitted on, none if it does not learn."""
        return self.data.refs("train", self.study.fold, model.dims) if must_fit(cell.attack) else ()

    def donors(self, model: ModelRef) -> Donors:
        """The cases whose masks a goal may take: the split's, whatever the limit."""
        return Donors(self.data, tuple(self.data.refs(self.study.split, self.study.fold, model.dims)))

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
            self.study.model_dump(exclude={"data", "models", "unit"} | (set() if self.study.native else {"native"}))
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
