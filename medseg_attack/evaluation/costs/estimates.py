"""The cost of a study: passes, time, memory and disk, from counted passes times one measured forward and backward.

Passes are those of the attacked model; time has those of surrogates, too. Of a pass through windows one is computed,
and its time counts for each of them. So a plan takes seconds whatever the study costs.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from sys import maxsize
from typing import Any, TypeVar

import torch

from medseg_attack.attacks.blackbox.transfer import Transfer
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.data.prepared.subsets import informative
from medseg_attack.errors import InputError
from medseg_attack.evaluation.costs.counting import Passes, Unmoved, count_in_proportion, count_passes_on_case, part_of
from medseg_attack.evaluation.fitting import fit_once
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.evaluation.studies.examining import findings_before
from medseg_attack.evaluation.studies.opened import OpenedStudy
from medseg_attack.evaluation.studies.refusals import refuse_unrunnable
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.models.sliding_window import Rehearsal, rehearsed
from medseg_attack.registry import with_eps
from medseg_attack.registry.abilities import ClimbsInSteps
from medseg_attack.registry.parts import walk
from medseg_attack.runs.chunks import chunks
from medseg_attack.runs.grid import Cell
from medseg_attack.runs.stored_specs import without_budget
from medseg_attack.runtime import FIRST, peak_mb, wait_for
from medseg_attack.threat.binding import bind
from medseg_attack.types import Batch, Case, Donors, Image, LogOdds, Model, Setting

BRIEF = 2  # steps: from the second one on, an iterate is held beside the untouched image
LONG = 10.0  # seconds of a pass beside which those of loading kernels are little
ROW_BYTES = 100  # of one case and class on disk
IMAGE_BYTES = 8  # of one pixel: the stored image and the perturbed scan that is written from it
T = TypeVar("T")


@dataclass(frozen=True)
class RunCost:
    """The cost of one run, as far as this shard computes it.

    Attributes:
        cases: that the shard attacks.
        case_forwards, case_backwards: passes that the attack spends on a case, as `compare --costs` shows them.
        forwards, backwards: passes for all cases, with those of a fit and two of the loop's own per case.
        peak_mb: memory that this process (on a GPU: its tensors) took at most so far.
        eps: in the unit `eps_unit`; without a unit, the share of the window or whatever the ball has.
    """

    model: str
    attack: str
    loss: str
    eps: float
    eps_unit: str
    cases: int
    case_forwards: int
    case_backwards: int
    forwards: int
    backwards: int
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Estimate:
    """The cost of a study, or of one shard of it.

    Attributes:
        cases: of the run with the most cases.
        seconds: of all runs and of the checks before them.
        check_seconds: of the checks before the first run of each model, which look at a few cases; of a model that
            attacks move they take less.
        disk_mb: rows and, where they are kept, perturbed scans of all runs.
        memory_mb: peak memory of the process; on a GPU, of its tensors. On whole scans an attack with steps is run
            for `BRIEF` of them. A model that is asked about noisy copies gets 16 of them at most.
    """

    cases: int
    runs: tuple[RunCost, ...]
    seconds: float
    check_seconds: float
    disk_mb: float
    memory_mb: float


def estimate(opened: OpenedStudy, advance: Callable[[int], None] = lambda n: None) -> Estimate:
    """Counts the passes of every attack, measures one forward and one backward pass per model, and writes nothing.

    Args:
        advance: is called with 1 after each run, which takes minutes where a pass of a whole scan does.

    Raises:
        InputError: the study cannot be run.
    """
    refuse_unrunnable(opened)
    runs = []
    check_seconds = 0.0
    for model_ref in opened.models:
        measured = _measure(opened, model_ref)
        check_seconds += _check_seconds(opened, model_ref, measured) if opened.options.checks else 0.0
        for cost in _run_costs(opened, model_ref, measured):
            runs.append(cost)
            advance(1)
    n_cases = sum(run.cases for run in runs)
    n_pixels = max(prod(ref.shape) for model_ref in opened.models for ref in opened.refs(model_ref))
    image_bytes = 0 if opened.options.save == "none" else IMAGE_BYTES * n_pixels
    return Estimate(
        max(run.cases for run in runs),
        tuple(runs),
        seconds=sum(run.seconds for run in runs) + check_seconds,
        check_seconds=check_seconds,
        disk_mb=n_cases * (ROW_BYTES * len(opened.data.task.scored) + image_bytes) / 1e6,
        memory_mb=max(run.peak_mb for run in runs),
    )


def added(estimates: Sequence[Estimate]) -> Estimate:
    """The cost of several studies that run one after the other."""
    return Estimate(
        max(each.cases for each in estimates),
        tuple(run for each in estimates for run in each.runs),
        seconds=sum(each.seconds for each in estimates),
        check_seconds=sum(each.check_seconds for each in estimates),
        disk_mb=sum(each.disk_mb for each in estimates),
        memory_mb=max(each.memory_mb for each in estimates),
    )


@dataclass(frozen=True)
class _Measured:
    """A model, the cases that it was measured on, and the seconds per case of one pass of each kind."""

    model: SegModel
    cases: Sequence[Case]
    forward: float
    backward: float


def _measure(opened: OpenedStudy, model_ref: ModelRef) -> _Measured:
    groups = chunks(opened.refs(model_ref))
    cases = [opened.data.read(ref) for ref in groups[len(groups) // 2][: opened.options.batch_size or FIRST]]
    model = model_ref.load(opened.data.task, opened.device)
    n_answers = model.passes  # of the network within, of which a rehearsal may make fewer
    with frozen(model), rehearsed() as rehearsal:
        times = n_answers / model.passes
        forward, backward = (times * s for s in _pass_seconds(model, Batch.of(cases, opened.device), rehearsal))
    return _Measured(model, cases, forward, backward)


def _check_seconds(opened: OpenedStudy, model_ref: ModelRef, measured: _Measured) -> float:
    """Seconds of the checks before the runs of a model; their passes are counted on parts of the cases they look at."""
    cases = informative(opened.data, opened.refs(model_ref))
    cells, donors, black_box = opened.cells(model_ref), opened.donors(model_ref), measured.model.black_box
    for images in (list(map(part_of, cases)), cases):  # a part has no meaning for some goals
        batch = Batch.of(images, opened.device)
        model = CountedModel(Unmoved(opened.data.task, batch.target, model_ref.is_random, most=maxsize))
        try:
            findings_before(model, batch, cells, donors, black_box=black_box)
            break
        except InputError:
            if images is cases:
                raise
    return len(cases) * (model.forwards * measured.forward + model.backwards * measured.backward)


def _run_costs(opened: OpenedStudy, model_ref: ModelRef, measured: _Measured) -> Iterator[RunCost]:
    counted: dict[Any, Passes] = {}  # an attack takes the same passes at every budget
    crafting: dict[Any, float] = {}
    for cell, n_cases in zip(opened.cells(model_ref), opened.cases_of_runs(model_ref), strict=True):
        key = with_eps(cell.attack, 0.0)
        if key not in counted:
            n_training = len(opened.training_refs(model_ref, cell))
            count_passes = partial(count_passes_on_case, opened, model_ref, cell, measured.cases[0], n_training)
            counted[key] = count_in_proportion(cell.attack, count_passes)
            crafting[key] = _surrogate_seconds(opened, cell, measured.cases, count_passes)
            if measured.model.dims == 3:  # of a slice it is the network's own memory that counts
                batch = Batch.of([measured.cases[0]], opened.device)
                _run_briefly(measured.model, cell, batch, opened.donors(model_ref))
            peak = peak_mb(opened.device)
        passes = counted[key]
        forwards = (passes.forwards + 2) * n_cases + passes.fit_forwards  # 2: the clean prediction and the scored one
        backwards = passes.backwards * n_cases + passes.fit_backwards
        yield RunCost(
            model=model_ref.label,
            attack=without_budget(cell.label, cell.ball),
            loss=cell.loss,
            eps=cell.budget.value if cell.budget else cell.eps,
            eps_unit=cell.budget.unit if cell.budget else cell.attack.ball.unit,
            cases=n_cases,
            case_forwards=passes.forwards,
            case_backwards=passes.backwards,
            forwards=forwards,
            backwards=backwards,
            seconds=forwards * measured.forward + backwards * measured.backward + n_cases * crafting[key],
            peak_mb=peak,
        )


def _run_briefly(model: SegModel, cell: Cell, batch: Batch, donors: Donors) -> None:
    """Attacks a whole scan with a few steps, which take the memory of many; none of an attack without steps."""
    if isinstance(cell.attack, ClimbsInSteps) and not model.black_box:
        attack: Any = cell.attack
        with frozen(model), rehearsed():
            brief, _ = fit_once(replace(attack, steps=min(attack.steps, BRIEF)), model, batch, 1)
            attack_chunk(model, [batch], [brief], budgets=[cell.budget], donors=donors)


def _surrogate_seconds(
    opened: OpenedStudy, cell: Cell, cases: Sequence[Case], count_passes: Callable[..., Passes]
) -> float:
    """Seconds per case that an attack spends on other models than the attacked one; 0 of one that asks none."""
    batch, seconds = Batch.of(cases, opened.device), 0.0
    for part in walk(cell.attack):
        if isinstance(part, Transfer):
            passes = count_in_proportion(part.attack, count_passes)
            surrogate = bind(part, Setting(opened.data.task, batch.cases)).fused(opened.data.task, batch.image)
            with rehearsed() as rehearsal:
                forward, backward = _pass_seconds(surrogate, batch, rehearsal)
            seconds += passes.forwards * forward + passes.backwards * backward
    return seconds


def _pass_seconds(model: Model, batch: Batch, rehearsal: Rehearsal) -> tuple[float, float]:
    """Seconds per case of one forward pass, and of one backward pass, with the windows that the rehearsal leaves out.

    The first pass of each kind pays for what later ones have: it is made twice, unless that is little of a long one.
    """
    bound = bind(model, Setting(model.task, batch.cases))

    def seconds(work: Callable[[T], object], prepare: Callable[[], T]) -> float:
        """Those of a whole pass per case, without its preparation."""
        for _ in range(2):
            prepared = prepare()
            before, start = rehearsal.seconds, time.perf_counter()
            work(prepared)
            wait_for(batch.image.device)
            passed = time.perf_counter() - start
            if passed >= LONG:
                break
        return (passed + rehearsal.seconds - before) / len(batch.cases)

    def answered() -> tuple[Image, LogOdds]:
        x = batch.image.detach().requires_grad_()
        return x, bound(x)

    def differentiate(pair: tuple[Image, LogOdds]) -> None:
        x, log_odds = pair
        if log_odds.requires_grad:
            torch.autograd.grad(log_odds.sum(), x)

    with torch.no_grad():
        forward = seconds(bound, lambda: batch.image)
    is_black_box = isinstance(model, SegModel) and model.black_box
    return forward, 0.0 if is_black_box else seconds(differentiate, answered)
