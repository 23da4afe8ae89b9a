"""The loop: model x cases x attacks -> rows; chunks of cases whose rows are there are skipped.

It trusts nobody: it runs the model again on what an attack returned, and checks the ball and the box itself.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from medseg_attack.errors import NotFiniteError, listed
from medseg_attack.evaluation.crafting import Crafted, case_budgets, craft
from medseg_attack.metrics.overlap import measure
from medseg_attack.metrics.scans import Bits, by_scan, diagonals_mm, packed, unpacked
from medseg_attack.metrics.visibility import visibility
from medseg_attack.numerics.log_odds import is_finite, without_nan
from medseg_attack.numerics.noise import noise_of
from medseg_attack.registry.foreign import at_fault
from medseg_attack.runs.chunks import chunks, in_shard
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.rows import DIAGONAL_MM, FAULTS, WITHOUT_ANSWER, Change, Row, require_own_columns
from medseg_attack.runtime import BatchSize
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.budgets import Budget
from medseg_attack.threat.goals.aim import find_aim
from medseg_attack.types import (
    Attack,
    Batch,
    Case,
    CaseRef,
    CaseSource,
    Donors,
    Image,
    LogOdds,
    Mask,
    Metric,
    Model,
    PerSample,
    Prompts,
    Setting,
    Task,
)

TOLERANCE = 1e-6  # of a ball's size: what float32 adds to a budget when x - x0 is taken back


@dataclass(frozen=True, eq=False)
class Result:
    """The result of one attack on a chunk, in the order of its cases.

    Attributes:
        rows: a row for each case and scored class.
        images: perturbed images if they were asked for: as a file holds them, or floats in [0, 1] where there is none.
        seconds: wall time of the attack.
    """

    rows: list[Row]
    images: list[Tensor]
    seconds: float


def attack_chunk(
    model: Model,
    batches: Sequence[Batch],
    attacks: Sequence[Attack],
    *,
    budgets: Sequence[Budget | None] = (),
    metrics: Mapping[str, Metric] | None = None,
    seed: int = 0,
    keep_images: bool = False,
    donors: Donors | None = None,
) -> list[Result]:
    """The result of every attack on the batches of one chunk; the clean prediction is made once for all of them.

    Args:
        budgets: budget of each attack whose size is not a fraction of the window; none by default.
        metrics: further measures of whole scans, by column name.
        donors: cases whose masks a goal may take.

    Raises:
        RuntimeError: an attack left its ball or [0, 1], or a metric is not one number per class.
        InputError: the columns of a metric are taken.
        NotFiniteError: the model returned NaN or infinity on an untouched image.
    """
    metrics, budgets = metrics or {}, budgets or [None] * len(attacks)
    require_own_columns(metrics)
    outcomes: list[list[CaseOutcome]] = [[] for _ in attacks]
    seconds = [0.0] * len(attacks)
    faulty: list[dict[str, set[str]]] = [{fault: set() for fault in FAULTS} for _ in attacks]  # ids of cases
    clean_masks: list[MaskPair] = []
    for batch in batches:
        clean = packed(decide(model, batch))  # they wait while attacks run
        clean_masks += map(MaskPair, clean, packed(batch.target)) if metrics else []
        by_position: list[dict[int, CaseOutcome]] = [{} for _ in attacks]
        for outcome in attack_batch(model, batch, clean, attacks, budgets, seed=seed, donors=donors):
            crafted = outcome.crafted
            cases_of_attack = _reduced(outcome, keep_masks=bool(metrics), keep_images=keep_images)
            by_position[crafted.index] |= zip(crafted.positions, cases_of_attack, strict=True)
            seconds[crafted.index] += crafted.seconds
            for fault, ids in outcome.faults.items():
                faulty[crafted.index][fault] |= ids
            del outcome, crafted  # their images are gone before the next attack runs
        for index, in_batch in enumerate(by_position):
            outcomes[index] += [in_batch[n] for n in range(len(batch.cases))]

    cases = [case for batch in batches for case in batch.cases]
    scans_clean = _measure_scans(metrics, model.task, cases, clean_masks, "clean")
    diagonals = diagonals_mm(cases) if metrics else {}
    results = []
    for index, attack_outcomes in enumerate(outcomes):
        masks = [outcome.masks for outcome in attack_outcomes if outcome.masks is not None]
        scans_adv = _measure_scans(metrics, model.task, cases, masks, "adv")
        rows = [row for outcome in attack_outcomes for row in outcome.rows]
        for row in rows:  # measures of a scan stand on each of its slices
            for measures in (scans_clean, scans_adv):
                row.extra.update(measures.get((row.volume, row.cls), {}))
            if metrics:
                row.extra[DIAGONAL_MM] = diagonals[row.volume]
        mark_faults(rows, faulty[index])
        images = [outcome.image for outcome in attack_outcomes if outcome.image is not None]
        results.append(Result(rows, images, seconds[index]))
    return results


class MaskPair(NamedTuple):
    """A prediction and the truth that it is measured against, packed."""

    pred: Bits
    target: Bits


class CaseOutcome(NamedTuple):
    """The effect of one attack on one case, as far as it is kept until a chunk is done.

    Attributes:
        rows: one for each scored class.
        masks: None unless measures of whole scans need them.
        image: None unless it was asked for.
    """

    rows: list[Row]
    masks: MaskPair | None
    image: Tensor | None


@dataclass(frozen=True, eq=False)
class Outcome:
    """The effect of one attack on some cases of a batch, in the order of `crafted.positions`.

    Attributes:
        crafted: the perturbed images, and how they came about.
        masks: the model's answer on them; what a patch covers is in no mask.
        truth: the truth on them, which goes where the anatomy went.
        size: size of each change in the ball's unit.
        rows: of each case one for each scored class.
        faults: ids of the cases on which the attack met each fault of the model.
    """

    crafted: Crafted
    masks: Mask
    truth: Mask
    size: PerSample
    rows: list[list[Row]]
    faults: Mapping[str, set[str]]


def attack_batch(
    model: Model,
    batch: Batch,
    clean: Sequence[Bits],
    attacks: Sequence[Attack],
    budgets: Sequence[Budget | None],
    *,
    seed: int = 0,
    donors: Donors | None = None,
) -> Iterator[Outcome]:
    """The effect of every attack on one batch; `attack_chunk` and `medseg_attack.attack` are made of it.

    Args:
        clean: the model's answer on each untouched image: `decide`, packed.
        budgets: budget of each attack whose size is not a fraction of the window; None: the attack's own ball.
        donors: cases whose masks a goal may take.

    Raises:
        RuntimeError: an attack left its ball or [0, 1].
    """
    noise = noise_of(batch.image)

    def score(crafted: Crafted) -> Outcome:
        try:
            return _score(model, batch, clean, noise, crafted, budgets[crafted.index])
        except StopIteration as error:  # of a part of somebody else's: it would end the map without a word
            raise RuntimeError("a part raised StopIteration") from error

    # no name here holds a result: its images are gone before the next attack runs
    yield from map(score, craft(model, batch, attacks, budgets, seed, donors, clean))


def mark_faults(rows: Sequence[Row], faults: Mapping[str, set[str]]) -> None:
    """Gives all rows a column for each fault that was met: 1 where it was met on the case."""
    for row in rows:
        row.extra.update({fault: float(row.case in ids) for fault, ids in faults.items() if ids})


def _score(
    model: Model, batch: Batch, clean: Sequence[Bits], noise: PerSample, crafted: Crafted, budget: Budget | None
) -> Outcome:
    """The effect of an attack on the cases that it was run on."""
    cases, ball = [batch.cases[n] for n in crafted.positions], crafted.attack.ball

    # the change, in the ball and in the box
    x0 = crafted.x0.expand_as(crafted.image)  # a variant may perturb copies of the channel one by one
    size = ball.total_size(crafted.image, x0, crafted.flow)
    _check(crafted, size, cases)
    linf = Linf().size(crafted.image, x0)
    eps = math.nan if ball.unit else ball.eps
    untouched = _at(batch.image, crafted.positions)
    budgets = case_budgets(cases, _at(noise, crafted.positions), budget, eps)
    changes = [Change(*change) for change in zip(size.tolist(), linf.tolist(), budgets, strict=True)]

    # the predictions, and the truth, which goes where the anatomy went; what a patch covers is in none of them
    pred, unanswered = _fresh(model, crafted.image, cases, crafted.prompts)
    target = _at(batch.target, crafted.positions)
    masks = [unpacked([clean[n] for n in crafted.positions], target), target, pred, crafted.truth]
    covered = ball.covered(crafted.image, x0)
    pred_clean, target, pred, target_adv = [mask & ~covered for mask in masks] if covered.any() else masks
    del covered, masks

    overlaps_clean, overlaps_adv = measure((pred_clean, target), (pred, target_adv))
    aim = find_aim(crafted.attack, model.task)
    # further columns of each scored class, of an attack with a goal or a stopping rule
    columns = None if aim is None else aim.measured(pred_clean, pred, target)
    visible = visibility(crafted.image, untouched.expand_as(crafted.image), [budget.noise for budget in budgets])
    rows = [
        [
            Row.of(
                case,
                model.task.classes[k],
                clean=overlaps_clean[n][k],
                adv=overlaps_adv[n][k],
                change=changes[n],
                cost=crafted.cost[n],
                extra=visible[n]._asdict() | ({} if columns is None else columns[n][i]),
            )
            for i, k in enumerate(model.task.scored)
        ]
        for n, case in enumerate(cases)
    ]
    faults = {fault: {case.id for case in faulty} for fault, faulty in crafted.faults.items()}
    faults[WITHOUT_ANSWER] = faults.get(WITHOUT_ANSWER, set()) | unanswered
    return Outcome(crafted, pred, target_adv, size, rows, faults)


def _at(tensor: Tensor, positions: Sequence[int]) -> Tensor:
    """The samples at these places; without a copy if they are all."""
    return tensor if len(positions) == len(tensor) else tensor[list(positions)]


def _fresh(model: Model, image: Image, cases: Sequence[Case], prompts: Prompts | None) -> tuple[Mask, set[str]]:
    """The prediction of a pass of its own, since what an attack saw does not count, and the cases without an answer."""
    log_odds = _answer(model, image, cases, prompts)
    finite: list[bool] = is_finite(log_odds).tolist()
    unanswered = {case.id for case, fine in zip(cases, finite, strict=True) if not fine}
    return model.decide(without_nan(log_odds) if unanswered else log_odds), unanswered


def _reduced(outcome: Outcome, *, keep_masks: bool, keep_images: bool) -> list[CaseOutcome]:
    """The outcome of each case, without its images unless they are asked for: memory must not grow with scans."""
    images = outcome.crafted.image if outcome.crafted.stored is None else outcome.crafted.stored
    masks = _packed_pairs(outcome.masks, outcome.truth) if keep_masks else None
    return [
        CaseOutcome(rows, None if masks is None else masks[n], images[n].cpu() if keep_images else None)
        for n, rows in enumerate(outcome.rows)
    ]


SliceOrRef = TypeVar("SliceOrRef", Case, CaseRef)


def in_batches(cases: Sequence[SliceOrRef], size: int) -> list[list[SliceOrRef]]:
    """Cases in batches, the slices of a volume in one where they fit: an attack may look at its volume as a whole.

    A volume of more slices than a batch takes is cut into as few parts as it needs, of almost the same size.
    """
    batches: list[list[SliceOrRef]] = []
    for _, group in groupby(cases, key=lambda case: case.volume):
        volume = list(group)
        n_parts = -(-len(volume) // size)
        for part in range(n_parts):
            slices = volume[part * len(volume) // n_parts : (part + 1) * len(volume) // n_parts]
            if batches and len(batches[-1]) + len(slices) <= size:
                batches[-1] += slices
            else:
                batches.append(slices)
    return batches


def _packed_pairs(pred: Mask, target: Mask) -> list[MaskPair]:
    return [MaskPair(*pair) for pair in zip(packed(pred), packed(target), strict=True)]


def decide(model: Model, batch: Batch) -> Mask:
    """The segmentation of a batch's images, each with the draws of its case where the model is random.

    Raises:
        NotFiniteError: the model returned NaN or infinity.
    """
    log_odds = _answer(model, batch.image, batch.cases)
    if not all(finite := is_finite(log_odds).tolist()):
        ids = [case.id for case, fine in zip(batch.cases, finite, strict=True) if not fine]
        raise NotFiniteError(
            f"expected finite log-odds, got NaN or infinity on {listed(ids)}; train or load other weights"
        )
    return model.decide(log_odds)


def _answer(model: Model, image: Image, cases: Sequence[Case], prompts: Prompts | None = None) -> LogOdds:
    with torch.no_grad():
        return bind(model, Setting(model.task, tuple(cases), prompts=prompts))(image)


def _check(crafted: Crafted, size: Tensor, cases: Sequence[Case]) -> None:
    limit = crafted.attack.ball.limit
    outside = (crafted.image < 0).flatten(1).any(1) | (crafted.image > 1).flatten(1).any(1)
    wrong = ~(size <= limit * (1 + TOLERANCE) + TOLERANCE) | outside  # NaN is wrong, too
    if wrong.any():
        ids = [case.id for case, bad in zip(cases, wrong.tolist(), strict=True) if bad]
        raise at_fault(
            crafted.attack,
            f"expected changes of size {limit:.6g} at most within [0, 1], got {size[wrong].tolist()} on "
            f"{', '.join(ids)}; the attack is at fault",
        )


ScanMeasures: TypeAlias = dict[tuple[str, str], dict[str, float]]  # (volume, class) -> column -> value


def _measure_scans(
    metrics: Mapping[str, Metric], task: Task, cases: Sequence[Case], masks: Sequence[MaskPair], when: str
) -> ScanMeasures:
    if not metrics:
        return {}
    columns = {f"{name}_{when}": metric for name, metric in metrics.items()}
    return by_scan(columns, cases, [pair.pred for pair in masks], [pair.target for pair in masks], task.classes)


@dataclass(frozen=True)
class PendingRun:
    """An attack that is to be run, its budget if that has a unit, the folder for its rows, its number in the study."""

    attack: Attack
    folder: RunFolder
    budget: Budget | None = None
    number: int = 0


def run_attacks(
    model: Model,
    data: CaseSource,
    todo: Sequence[PendingRun],
    refs: Sequence[CaseRef],
    *,
    batch_size: int | None = 16,
    device: torch.device | str = "cpu",
    metrics: Mapping[str, Metric] | None = None,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    keep_images: bool = False,
    donors: Donors | None = None,
) -> Iterator[int]:
    """Writes the rows of every attack into its folder, chunk by chunk, skipping chunks that are done.

    Args:
        batch_size: cases per batch; None finds the size, see `BatchSize`.

    Yields:
        After each chunk, the number of (case, attack) pairs that are done with it.
    """
    all_chunks, per_batch = chunks(refs), BatchSize.of(batch_size)
    for number, chunk in enumerate(all_chunks):
        of_shard = [run for run in todo if in_shard(number, run.number, len(all_chunks), shard)]
        unfinished = [run for run in of_shard if not run.folder.has(number)]
        if unfinished:
            cases = [data.read(ref) for ref in chunk]
            results: list[Result] = []
            while not results:
                groups = in_batches(cases, per_batch.size)
                start = time.perf_counter()
                try:
                    results = attack_chunk(
                        model,
                        [Batch.of(group, device) for group in groups],
                        [run.attack for run in unfinished],
                        budgets=[run.budget for run in unfinished],
                        metrics=metrics,
                        seed=seed,
                        keep_images=keep_images,
                        donors=donors,
                    )
                except (MemoryError, RuntimeError) as error:
                    per_batch.halve(error, max(map(len, groups)))
            size = per_batch.size
            per_batch.note(len(cases), time.perf_counter() - start)
            for run, result in zip(unfinished, results, strict=True):
                if keep_images:
                    ids, arrays = [case.id for case in cases], [image.numpy() for image in result.images]
                    run.folder.write_images(number, dict(zip(ids, arrays, strict=True)))
                run.folder.write(number, result.rows, result.seconds, size)
        if of_shard:
            yield len(chunk) * len(of_shard)
