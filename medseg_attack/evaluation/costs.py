"""What a study would cost, from one batch of it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from medseg_attack.errors import InputError
from medseg_attack.evaluation.fitting import fit_once
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.evaluation.runner import OpenedStudy, bind_data, training_cases
from medseg_attack.models.segmodel import frozen
from medseg_attack.runs.chunks import chunks
from medseg_attack.runtime import peak_mb
from medseg_attack.types import Batch, informed


@dataclass(frozen=True)
class Cost:
    """What one run would cost, from one batch that was attacked for it.

    Attributes:
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


def estimate(benchmark: OpenedStudy) -> Iterator[Cost]:
    """Attacks one batch with every attack and writes nothing.

    Yields:
        Passes and seconds of each run for all of its cases, and memory.
    """
    for model_ref in benchmark.models:
        refs = benchmark.refs(model_ref)
        if not refs:
            raise InputError(
                f"expected cases in the {benchmark.study.split} split of {benchmark.data.root}, got none; check --split"
            )
        groups = chunks(refs)
        cases = [benchmark.data.read(ref) for ref in groups[len(groups) // 2][: benchmark.batch_size]]
        share = len(refs) / len(cases)
        model = model_ref.load(benchmark.data.task, benchmark.device)
        batch = Batch.of(cases, benchmark.device)
        with frozen(model):
            informed(model, cases)(batch.image)  # the first pass pays for what later ones have
            for cell in benchmark.cells(model_ref):
                attack, fit = fit_once(cell.attack, model, batch, len(training_cases(benchmark, model_ref, cell)))
                start = time.perf_counter()
                attack = bind_data(attack, benchmark, model_ref)
                rows = attack_chunk(model, [batch], [attack], budgets=[cell.budget])[0].rows
                seconds = (time.perf_counter() - start) * share + fit.seconds
                # two passes of the loop's own per case: the clean prediction and the one that is scored
                forwards = (rows[0].forwards + 2) * len(refs) + fit.forwards
                passes = forwards, rows[0].backwards * len(refs) + fit.backwards
                peak = peak_mb(benchmark.device)
                yield Cost(model_ref.label, cell.label, cell.loss, cell.eps, *passes, seconds, peak)
