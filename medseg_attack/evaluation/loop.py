"""THE loop: model x cases x attacks -> rows. It trusts nobody: it runs the model again on what an attack returned,
and checks the ball and the box itself."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg_attack.errors import NotFiniteError
from medseg_attack.evaluation.crafting import Crafted, Size, craft, sizes
from medseg_attack.metrics.overlap import counts, index_sums
from medseg_attack.metrics.scans import Bits, by_scan, packed
from medseg_attack.numerics.flows import moved
from medseg_attack.runs.chunks import chunks
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.rows import Row
from medseg_attack.threat.balls.base import covered, size_of
from medseg_attack.threat.budgets import Budget
from medseg_attack.threat.goals.aim import find_aim
from medseg_attack.types import Attack, Batch, Case, CaseRef, CaseSource, Image, Mask, Metric, Model, Task, informed

TOLERANCE = 1e-6  # of a ball's size: what float32 adds to a budget when x - x0 is taken back


@dataclass(eq=False)
class Result:
    """What one attack did on a chunk, in the order of its cases.

    Attributes:
        images: if they were asked for: as a file holds them, or floats in [0, 1] where there is no file.
    """

    rows: list[Row] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0


def attack_chunk(
    model: Model,
    batches: Sequence[Batch],
    attacks: Sequence[Attack],
    *,
    budgets: Sequence[Budget | None] = (),
    metrics: Mapping[str, Metric] | None = None,
    seed: int = 0,
    keep_images: bool = False,
) -> list[Result]:
    """The result of every attack on the batches of one chunk; the clean prediction is made once for all of them.

    Args:
        budgets: of each attack, where its size is not a fraction of the window; none by default.
        metrics: further measures of whole scans, by column name.

    Raises:
        RuntimeError: an attack left its ball or [0, 1].
        NotFiniteError: the model returned NaN or infinity.
    """
    metrics = metrics or {}
    budgets = budgets or [None] * len(attacks)
    results = [Result() for _ in attacks]
    seen: list[list[PackedMasks]] = [[] for _ in attacks]
    untouched: list[PackedMasks] = []
    for batch in batches:
        clean = _decide(model, batch.image, batch.cases)
        untouched += _seen(clean, batch.target) if metrics else []
        found: list[dict[int, CaseResult]] = [{} for _ in attacks]
        for one in craft(model, batch, attacks, budgets, seed):
            found[one.index] |= _scored(model, batch, clean, one, budgets[one.index], bool(metrics))
            results[one.index].seconds += one.seconds
        for index, by_case in enumerate(found):
            for n in range(len(batch.cases)):
                results[index].rows += by_case[n].rows
                seen[index] += [by_case[n].seen] if metrics else []
                results[index].images += [by_case[n].image] if keep_images else []
    cases = [case for batch in batches for case in batch.cases]
    of_clean = _measured(metrics, model.task, cases, untouched, "clean")
    for index, result in enumerate(results):
        of_hit = _measured(metrics, model.task, cases, seen[index], "adv")
        result.rows = [_with(row, of_clean, of_hit) for row in result.rows]
    return results


class PackedMasks(NamedTuple):
    """A prediction and the truth that it is measured against."""

    pred: Bits
    target: Bits


class CaseResult(NamedTuple):
    rows: list[Row]
    seen: PackedMasks
    image: Tensor


def _scored(
    model: Model, batch: Batch, clean: Mask, found: Crafted, budget: Budget | None, keep_mask: bool
) -> dict[int, CaseResult]:
    """Rows, prediction and image of each case that the attack was run on, by its place in the batch."""
    cases = [batch.cases[n] for n in found.positions]
    before = found.before.expand_as(found.image)  # a variant may perturb copies of the channel one by one
    size = size_of(found.attack.ball, found.image, before, found.flow)
    _check(found, size, cases)
    hit = _decide(model, found.image, cases)  # a fresh pass: what the attack saw does not count
    linf = (found.image - before).abs().flatten(1).amax(1)
    # the truth goes where the anatomy went; what a patch covers is nobody's to find, before or after
    kept = ~covered(found.attack.ball, found.image, before)
    at_clean, hit = clean[found.positions] & kept, hit & kept
    target, there = (
        batch.target[found.positions] & kept,
        moved(batch.target[found.positions], found.flow, model.task.exclusive) & kept,
    )
    # the one copy back: counts and index sums of both predictions and both sizes
    parts = counts(at_clean, target), counts(hit, there), index_sums(at_clean), index_sums(hit)
    numbers = torch.cat(parts, dim=-1).tolist()
    own = math.nan if hasattr(found.attack.ball, "unit") else found.attack.ball.eps
    budgets = sizes(cases, batch.image[found.positions], budget, own)
    changes = [ChangeSize(*one) for one in zip(size.tolist(), linf.tolist(), budgets, strict=True)]
    rows = [list(_rows(model.task, *one)) for one in zip(cases, numbers, changes, found.cost, strict=True)]
    aim = find_aim(found.attack, model.task)
    if aim is not None:
        extras = aim.measured(at_clean, hit, target)
        rows = [
            [replace(row, extra=extra) for row, extra in zip(*pair, strict=True)]
            for pair in zip(rows, extras, strict=True)
        ]
    seen = _seen(hit, there) if keep_mask else [PackedMasks(_NOTHING, _NOTHING)] * len(cases)
    images = [image.cpu() for image in (found.image if found.stored is None else found.stored)]
    return {n: CaseResult(*one) for n, one in zip(found.positions, zip(rows, seen, images, strict=True), strict=True)}


def _seen(pred: Mask, target: Mask) -> list[PackedMasks]:
    return [PackedMasks(*one) for one in zip(packed(pred), packed(target), strict=True)]


_NOTHING: Bits = np.zeros(0, np.uint8)


class ChangeSize(NamedTuple):
    """How large a case's change is, and how large it might have been."""

    size: float
    linf: float
    budget: Size


def _decide(model: Model, image: Image, cases: Sequence[Case]) -> Mask:
    with torch.no_grad():
        log_odds = informed(model, cases)(image)
    if not torch.isfinite(log_odds).all():
        ids = ", ".join(case.id for case in cases[:3])
        raise NotFiniteError(f"expected finite log-odds, got NaN or infinity on {ids}; check the network's weights")
    return model.decide(log_odds)


def _check(found: Crafted, size: Tensor, cases: Sequence[Case]) -> None:
    limit = found.attack.ball.limit
    outside = (found.image < 0).flatten(1).any(1) | (found.image > 1).flatten(1).any(1)
    wrong = ~(size <= limit * (1 + TOLERANCE) + TOLERANCE) | outside  # NaN is wrong, too
    if wrong.any():
        ids = [case.id for case, bad in zip(cases, wrong.tolist(), strict=True) if bad]
        raise RuntimeError(
            f"expected changes of size {limit:.6g} at most within [0, 1], got {size[wrong].tolist()} on "
            f"{', '.join(ids)}; the attack is at fault"
        )


OfScans: TypeAlias = dict[tuple[str, str], dict[str, float]]  # (volume, class) -> column -> value


def _measured(
    metrics: Mapping[str, Metric], task: Task, cases: Sequence[Case], seen: Sequence[PackedMasks], when: str
) -> OfScans:
    if not metrics:
        return {}
    named = {f"{name}_{when}": metric for name, metric in metrics.items()}
    return by_scan(named, cases, [one.pred for one in seen], [one.target for one in seen], task.classes)


def _with(row: Row, *measured: OfScans) -> Row:
    """The row with what was measured of its scan."""
    more = {name: value for of_scans in measured for name, value in of_scans.get((row.volume, row.cls), {}).items()}
    return replace(row, extra=row.extra | more)


def _rows(task: Task, case: Case, numbers: list[list[int]], change: ChangeSize, cost: tuple[int, int]) -> Iterator[Row]:
    size, linf, (eps, width, level, noise) = change
    for k in task.scored:
        n_target, n_clean, hit_clean, n_target_adv, n_adv, hit_adv, *sums = numbers[k]
        row = Row(
            case.id,
            case.volume,
            case.group,
            task.classes[k],
            n_target,
            n_clean,
            hit_clean,
            n_adv,
            hit_adv,
            size,
            linf,
            *cost,
            n_target_adv,
            budget=eps,
            width=width,
            level=level,
            noise=noise,
        )
        yield _placed(row, case, sums)


def _placed(row: Row, case: Case, sums: Sequence[int]) -> Row:
    """The row with its voxel's size, and its sums of indices counted from the scan's first slice."""
    z_clean, y_clean, x_clean, z_adv, y_adv, x_adv = sums
    z_mm = case.spacing_mm[-3] if len(case.spacing_mm) == 3 else math.nan
    if case.stack is not None:
        z_mm = case.stack.spacing_mm
        z_clean, z_adv = case.stack.index * row.n_clean, case.stack.index * row.n_adv
    y_mm, x_mm = case.spacing_mm[-2:]
    return replace(
        row,
        z_mm=z_mm,
        y_mm=y_mm,
        x_mm=x_mm,
        z_clean=z_clean,
        y_clean=y_clean,
        x_clean=x_clean,
        z_adv=z_adv,
        y_adv=y_adv,
        x_adv=x_adv,
    )


@dataclass(frozen=True)
class PendingRun:
    """An attack, its budget if that has a unit, and where its rows go."""

    attack: Attack
    folder: RunFolder
    budget: Budget | None = None


def run_attacks(
    model: Model,
    data: CaseSource,
    todo: Sequence[PendingRun],
    refs: Sequence[CaseRef],
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    metrics: Mapping[str, Metric] | None = None,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    keep_images: bool = False,
) -> Iterator[int]:
    """Writes the rows of every attack into its folder, chunk by chunk, skipping what is there.

    Yields:
        After each chunk, the number of (case, attack) pairs that are done with it.
    """
    for number, chunk in enumerate(chunks(refs)):
        if number % shard[1] != shard[0]:
            continue
        open_ = [one for one in todo if not one.folder.has(number)]
        if open_:
            cases = [data.read(ref) for ref in chunk]
            batches = [Batch.of(cases[i : i + batch_size], device) for i in range(0, len(cases), batch_size)]
            results = attack_chunk(
                model,
                batches,
                [one.attack for one in open_],
                budgets=[one.budget for one in open_],
                metrics=metrics,
                seed=seed,
                keep_images=keep_images,
            )
            for one, result in zip(open_, results, strict=True):
                if keep_images:
                    ids = [case.id for case in cases]
                    one.folder.write_images(number, dict(zip(ids, map(_array, result.images), strict=True)))
                one.folder.write(number, result.rows, result.seconds)
        yield len(chunk) * len(todo)


def _array(image: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = image.numpy()
    return array
