"""The loop: model x cases x attacks -> rows; chunks of cases whose rows are there are skipped."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from medseg_attack.evaluation.outcomes import Outcome, attack_batch, decide, mark_faults
from medseg_attack.metrics.scans import Bits, by_scan, diagonals_mm, packed
from medseg_attack.runs.chunks import chunks, in_shard
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.rows import DIAGONAL_MM, FAULTS, Row, require_own_columns
from medseg_attack.runtime import BatchSize
from medseg_attack.threat.budgets import Budget
from medseg_attack.types import Attack, Batch, Case, CaseRef, CaseSource, Donors, Mask, Metric, Model, Task


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
