"""The cost of a study: passes, time, memory and disk, estimated from one batch per model."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from medseg_attack.evaluation.fitting import fit_once
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.evaluation.runner import OpenedStudy, donors_of, refuse_unrunnable, training_cases
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.segmodel import frozen
from medseg_attack.runs.chunks import chunks
from medseg_attack.runtime import peak_mb
from medseg_attack.threat.binding import bind
from medseg_attack.types import Batch, Setting

ROW_BYTES = 100  # of one case and class on disk
IMAGE_BYTES = 8  # of one pixel: the stored image and the perturbed scan that is written from it


@dataclass(frozen=True)
class RunCost:
    """The cost of one run, from one batch that was attacked for it.

    Attributes:
        forwards, backwards: passes for all cases of the run.
        peak_mb: memory that this process (on a GPU: its tensors) took at most so far.
    """

    model: str
    attack: str
    loss: str
    eps: float
    forwards: int
    backwards: int
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Estimate:
    """The cost of a study.

    Attributes:
        cases: of the model with the most cases.
        seconds: of one shard.
        disk_mb: rows and, where they are kept, perturbed scans of all runs.
        memory_mb: peak memory of the process; on a GPU, of its tensors.
    """

    cases: int
    runs: tuple[RunCost, ...]
    seconds: float
    disk_mb: float
    memory_mb: float


def estimate(opened: OpenedStudy) -> Estimate:
    """Attacks one batch per model with every attack and writes nothing.

    Raises:
        InputError: the split has no cases.
    """
    refuse_unrunnable(opened)
    runs = tuple(cost for model_ref in opened.models for cost in _run_costs(opened, model_ref))
    n_pixels = [[prod(ref.shape) for ref in opened.refs(model_ref)] for model_ref in opened.models]
    cases = max(map(len, n_pixels))
    row_bytes = cases * ROW_BYTES * len(opened.data.task.scored)
    image_bytes = 0 if opened.options.save == "none" else IMAGE_BYTES * max(map(sum, n_pixels))
    return Estimate(
        cases,
        runs,
        seconds=sum(run.seconds for run in runs) / opened.options.shard[1],
        disk_mb=len(runs) * (row_bytes + image_bytes) / 1e6,
        memory_mb=max(run.peak_mb for run in runs),
    )


def _run_costs(opened: OpenedStudy, model_ref: ModelRef) -> Iterator[RunCost]:
    refs = opened.refs(model_ref)
    groups = chunks(refs)
    cases = [opened.data.read(ref) for ref in groups[len(groups) // 2][: opened.options.batch_size]]
    share = len(refs) / len(cases)
    model = model_ref.load(opened.data.task, opened.device)
    batch = Batch.of(cases, opened.device)
    donors = donors_of(opened, model_ref)
    with frozen(model):
        bind(model, Setting(model.task, batch.cases))(batch.image)  # the first pass pays for what later ones have
        for cell in opened.cells(model_ref):
            attack, fit = fit_once(cell.attack, model, batch, len(training_cases(opened, model_ref, cell)))
            start = time.perf_counter()
            rows = attack_chunk(model, [batch], [attack], budgets=[cell.budget], donors=donors)[0].rows
            seconds = (time.perf_counter() - start) * share + fit.seconds
            # two passes of the loop's own per case: the clean prediction and the one that is scored
            forwards = (rows[0].forwards + 2) * len(refs) + fit.forwards
            backwards = rows[0].backwards * len(refs) + fit.backwards
            peak = peak_mb(opened.device)
            yield RunCost(model_ref.label, cell.label, cell.loss, cell.eps, forwards, backwards, seconds, peak)
