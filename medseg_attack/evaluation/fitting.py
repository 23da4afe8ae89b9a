"""Attacks that learn before they attack: once per model and budget, kept on disk, scored on other patients."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import torch

from medseg_attack.attacks.composed.adaptive import backward_of
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.finite import FiniteModel
from medseg_attack.errors import InputError, listed
from medseg_attack.models.checkpoints import load_tensors, save_tensors
from medseg_attack.registry.parts import replace_parts, walk
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.rows import FAULTS, FIT, WITHOUT_ANSWER, WITHOUT_GRADIENT
from medseg_attack.storage.files import open_tensors
from medseg_attack.storage.json_files import digest
from medseg_attack.threat.binding import bind
from medseg_attack.threat.budgets import Budget
from medseg_attack.types import Attack, Batch, CaseRef, CaseSource, Donors, Fittable, Model, Setting

BATCH = 8  # cases of a batch of the fit: it determines what is learned, unlike that of the attack


def must_fit(attack: Attack) -> bool:
    """Whether the attack, or a part of it, learns first."""
    return any(isinstance(part, Fittable) for part in walk(attack))


def fit_parts(attack: Attack, learn: Callable[[Fittable], Attack]) -> Attack:
    """The attack with each part that learns, at any depth, replaced by what `learn` returns for it."""
    learnt: Attack = replace_parts(attack, lambda part: learn(part) if isinstance(part, Fittable) else None)
    return learnt


@dataclass(frozen=True, eq=False)
class Batches(Sequence[Batch]):
    """Cases of one shape at a time, read whenever they are asked for."""

    data: CaseSource
    refs: tuple[tuple[CaseRef, ...], ...]
    device: torch.device

    @classmethod
    def of(cls, data: CaseSource, refs: Sequence[CaseRef], device: torch.device) -> "Batches":
        """Groups cases by shape, then by id, into batches of at most `BATCH`."""
        ordered = sorted(refs, key=lambda ref: (ref.shape, ref.id))
        batches: list[tuple[CaseRef, ...]] = []
        for _, group in groupby(ordered, key=lambda ref: ref.shape):
            same_shape = tuple(group)
            batches += [same_shape[start : start + BATCH] for start in range(0, len(same_shape), BATCH)]
        return cls(data, tuple(batches), device)

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, index: Any) -> Any:
        return Batch.of([self.data.read(ref) for ref in self.refs[index]], self.device)


def fitted(attack: Attack, model: Model, batches: Batches, folder: RunFolder, seed: int) -> Attack:
    """The attack with what it learned, which is read from the run's folder, or learned and written into it.

    Raises:
        InputError: the folder holds what was learned for a run of another configuration.
    """
    numbers = iter(range(1000))

    def learn(part: Fittable) -> Attack:
        path = folder.path / f"learned-{next(numbers)}.safetensors"
        if not path.exists():
            start = time.perf_counter()
            donors = Donors(batches.data, tuple(chain(*batches.refs)))
            finite = FiniteModel(model)
            setting = Setting(model.task, donors=donors, backward=backward_of((attack,)))
            learned = bind(part, setting).fit(finite, batches, seed)
            facts = {"config": digest(folder.config), "seconds": f"{time.perf_counter() - start:.3f}"}
            for fault, tally in ((WITHOUT_GRADIENT, finite.lost_gradients), (WITHOUT_ANSWER, finite.lost_answers)):
                facts[fault] = listed(sorted(case.id for case in tally.cases))
            save_tensors(path, learned, facts)
        tensors = load_tensors(path)  # also by whoever wrote it: shards attack with the same bits
        _check(path, digest(folder.config))
        return part.with_learned(tensors)

    return fit_parts(attack, learn)


def check_fit(label: str, budget: Budget | None, known: Sequence[CaseRef], refs: Sequence[CaseRef]) -> None:
    """Refuses to score an attack on patients that it is fitted on, and one perturbation of several sizes.

    Args:
        known: cases that the attack is fitted on.
        refs: cases that it is scored on.
    """
    shared = sorted({ref.group for ref in known} & {ref.group for ref in refs})
    if shared:
        raise InputError(
            f"expected {label} to be scored on other patients than it is fitted on, got {shared[0]} among both; take "
            "--split test or val"
        )
    if known and budget:
        raise InputError(
            f"expected eps as a fraction of the window for {label}, which is one perturbation for all scans, got "
            f"{budget}; write for instance 4/255"
        )


@dataclass(frozen=True)
class Cost:
    """The cost of a fit: forward and backward passes, and seconds of wall time."""

    forwards: int
    backwards: int
    seconds: float


def fit_once(attack: Attack, model: Model, batch: Batch, n: int) -> tuple[Attack, Cost]:
    """The attack fitted to one batch, and the cost that a fit to `n` cases would have."""
    counted, start = CountedModel(model), time.perf_counter()
    setting = Setting(model.task)
    fitted_attack = fit_parts(attack, lambda part: part.with_learned(bind(part, setting).fit(counted, [batch], 0)))
    seconds = time.perf_counter() - start
    return fitted_attack, Cost(counted.forwards * n, counted.backwards * n, seconds * n / len(batch.image))


def fit_seconds(folder: RunFolder) -> float:
    """Seconds that the fits of a run took."""
    return sum(map(_seconds, folder.path.glob("learned-*.safetensors")))


def _seconds(path: Path) -> float:
    text = _facts(path).get("seconds", "0")
    if not re.fullmatch(r"\d{1,12}(\.\d{1,12})?", text):
        raise InputError(
            f"expected the seconds of a fit in {path}, got {text!r:.60}; delete it and run the attack again"
        )
    return float(text)


def fit_faults(folder: RunFolder) -> dict[str, str]:
    """The fields of a run's header that name the cases on which its fits met a fault; none if they met none."""
    facts = [_facts(path) for path in sorted(folder.path.glob("learned-*.safetensors"))]
    cases = {fault: ", ".join(filter(None, (of_fit.get(fault, "") for of_fit in facts))) for fault in FAULTS}
    return {FIT.format(fault): names for fault, names in cases.items() if names}


def _facts(path: Path) -> dict[str, str]:
    with open_tensors(path) as file:
        return file.metadata() or {}


def _check(path: Path, config: str) -> None:
    stored = _facts(path).get("config", "none")
    if stored != config:
        raise InputError(
            f"expected in {path} what was learned for this run ({config[:12]}), got it of another ({stored[:12]}); "
            "delete the file and run the attack again"
        )
