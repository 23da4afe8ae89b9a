"""THE loop: model x cases x attacks -> rows. It trusts nobody: it runs the model again on what an attack returned,
and checks the ball and the box itself."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Protocol, TypeAlias, runtime_checkable
from zlib import crc32

import torch
from torch import Tensor

from medseg_attack.metrics.overlap import counts, index_sums
from medseg_attack.metrics.scans import Bits, by_scan, packed
from medseg_attack.registry import with_eps
from medseg_attack.results import CHUNK, Row, RunFolder
from medseg_attack.types import (
    Adversarial,
    Attack,
    Ball,
    Batch,
    Case,
    Image,
    LogOdds,
    Mask,
    Metric,
    Model,
    Task,
)

TOLERANCE = 1e-6  # of a ball's size: what float32 adds to a budget when x - x0 is taken back


@runtime_checkable
class Ref(Protocol):
    """A case that has not been read yet."""

    @property
    def id(self) -> str: ...
    @property
    def volume(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@runtime_checkable
class Data(Protocol):
    """Where cases are read from."""

    def read(self, ref: Any) -> Case: ...


class Metered:
    """A model that counts its passes; everything else is the model's own."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.forwards = self.backwards = 0

    @property
    def task(self) -> Task:
        return self.model.task

    def __call__(self, image: Image) -> LogOdds:
        self.forwards += 1
        log_odds = self.model(image)
        if log_odds.requires_grad:
            log_odds.register_hook(self._counted)  # type: ignore[no-untyped-call]
        return log_odds

    def decide(self, log_odds: LogOdds) -> Mask:
        return self.model.decide(log_odds)

    def _counted(self, grad: Tensor) -> None:
        self.backwards += 1


def chunks(refs: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Whole scans of one shape, at most 32 slices together unless a scan has more, in an order of the cases' own.

    Whole scans, so that what is measured in 3-D needs no other chunk: nothing is carried from one to the next, and
    resuming stays skipping.
    """
    ordered = sorted(refs, key=lambda ref: (ref.shape, ref.volume, ref.id))
    made: list[tuple[Any, ...]] = []
    for (shape, _), group in groupby(ordered, key=lambda ref: (ref.shape, ref.volume)):
        scan = tuple(group)
        if made and made[-1][0].shape == shape and len(made[-1]) + len(scan) <= CHUNK:
            made[-1] += scan
        else:
            made.append(scan)
    return made


def attack_chunk(
    model: Model,
    batches: Sequence[Batch],
    attacks: Sequence[Attack],
    *,
    metrics: Mapping[str, Metric] | None = None,
    seed: int = 0,
    keep_images: bool = False,
) -> Iterator[tuple[int, list[Row], float, Tensor | None]]:
    """Runs every attack on the batches of one chunk; the clean prediction is made once for all of them.

    Args:
        metrics: further measures of whole scans, by column name.
        keep_images: whether to hand the perturbed images over.

    Yields:
        Which attack, its rows, the seconds it took, and its images `(cases, c, *s)` on the CPU.

    Raises:
        RuntimeError: an attack left its ball or [0, 1], or the model returned something that is not finite.
    """
    metrics = metrics or {}
    cases = [case for batch in batches for case in batch.cases]
    masks: list[list[Bits]] = [[] for _ in attacks]  # only if there is something to measure
    masks_clean: list[Bits] = []
    rows: list[list[Row]] = [[] for _ in attacks]
    seconds = [0.0] * len(attacks)
    images: list[list[Tensor]] = [[] for _ in attacks]
    for batch in batches:
        clean = _decided(model, batch.image, batch)
        masks_clean += packed(clean) if metrics else []
        for index, found, cost, took in _attacked(model, batch, attacks, seed):
            ball = attacks[index].ball
            _check(ball, found, batch)
            hit = _decided(model, found.image, batch)  # a fresh pass: what the attack saw does not count
            masks[index] += packed(hit) if metrics else []
            image = batch.image.expand_as(found.image)  # a variant may perturb copies of the channel one by one
            size, linf = ball.size(found.image, image), (found.image - image).abs().flatten(1).amax(1)
            rows[index] += _rows(model.task, batch, clean, hit, size, linf, cost)
            seconds[index] += took
            if keep_images:
                images[index].append(found.image.cpu())
    of_clean = _measured(metrics, model.task, cases, masks_clean, "clean")
    for index in range(len(attacks)):
        measured = of_clean, _measured(metrics, model.task, cases, masks[index], "adv")
        kept = torch.cat(images[index]) if keep_images else None
        yield index, [_with(row, *measured) for row in rows[index]], seconds[index], kept


def _attacked(
    model: Model, batch: Batch, attacks: Sequence[Attack], seed: int
) -> Iterator[tuple[int, Adversarial, tuple[int, int], float]]:
    """Every attack's find, its passes and its seconds; attacks that differ in their budget alone may share work."""
    seeds = [crc32(f"{seed}/{case.id}".encode()) for case in batch.cases]
    for indices in _alike(attacks):
        metered = Metered(model)
        alike = [_bound(attacks[i], batch) for i in indices]
        sweep = getattr(alike[0], "sweep", None)
        start = time.perf_counter()
        if sweep is None:
            finds = (attack(metered, batch.image, batch.target, seeds) for attack in alike)
        else:
            finds = sweep(metered, batch.image, batch.target, seeds, [attack.ball for attack in alike])
        cost: tuple[int, int] | None = None
        for index, found in zip(indices, finds, strict=True):
            _settled(found.image)
            # what is shared is charged to each in full: a row's cost is that of running the attack alone
            cost = cost or (metered.forwards, metered.backwards)
            yield index, found, cost, time.perf_counter() - start
            start = time.perf_counter()


def _bound(attack: Attack, batch: Batch) -> Attack:
    """The attack on these cases: one that reads what was stored for them must know which they are."""
    on: Callable[[Sequence[Case]], Attack] | None = getattr(attack, "on", None)
    return attack if on is None else on(batch.cases)


def _alike(attacks: Sequence[Attack]) -> list[list[int]]:
    groups: dict[Any, list[int]] = {}
    for index, attack in enumerate(attacks):
        groups.setdefault(with_eps(attack, 0.0), []).append(index)
    return list(groups.values())


def _settled(image: Tensor) -> None:
    if image.device.type == "cuda":
        torch.cuda.synchronize(image.device)


def _decided(model: Model, image: Image, batch: Batch) -> Mask:
    with torch.no_grad():
        log_odds = model(image)
    if not torch.isfinite(log_odds).all():
        ids = ", ".join(case.id for case in batch.cases[:3])
        raise RuntimeError(f"expected finite log-odds, got NaN or infinity on {ids}; check the model's weights")
    return model.decide(log_odds)


def _check(ball: Ball, found: Adversarial, batch: Batch) -> None:
    size = ball.size(found.image, batch.image.expand_as(found.image))
    outside = (found.image < 0).flatten(1).any(1) | (found.image > 1).flatten(1).any(1)
    wrong = ~(size <= ball.limit * (1 + TOLERANCE) + TOLERANCE) | outside  # NaN is wrong, too
    if wrong.any():
        ids = [case.id for case, bad in zip(batch.cases, wrong.tolist(), strict=True) if bad]
        raise RuntimeError(
            f"expected changes of size {ball.limit:.6g} at most within [0, 1], got {size[wrong].tolist()} on "
            f"{', '.join(ids)}; the attack is at fault"
        )


OfScans: TypeAlias = dict[tuple[str, str], dict[str, float]]  # (volume, class) -> column -> value


def _measured(
    metrics: Mapping[str, Metric], task: Task, cases: Sequence[Case], predictions: Sequence[Bits], when: str
) -> OfScans:
    if not metrics:
        return {}
    named = {f"{name}_{when}": metric for name, metric in metrics.items()}
    return by_scan(named, cases, predictions, task.classes)


def _with(row: Row, *measured: OfScans) -> Row:
    """The row with what was measured of its scan."""
    more = {name: value for of_scans in measured for name, value in of_scans.get((row.volume, row.cls), {}).items()}
    return replace(row, extra=row.extra | more)


def _rows(
    task: Task,
    batch: Batch,
    clean: Mask,
    hit: Mask,
    size: Tensor,
    linf: Tensor,
    cost: tuple[int, int],
) -> Iterator[Row]:
    # the one copy back: counts and index sums of both predictions and both sizes
    parts = counts(clean, batch.target), counts(hit, batch.target)[..., 1:], index_sums(clean), index_sums(hit)
    numbers = torch.cat(parts, dim=-1).tolist()
    for i, (case, of_size, of_linf) in enumerate(zip(batch.cases, size.tolist(), linf.tolist(), strict=True)):
        for k in task.scored:
            n_target, n_clean, hit_clean, n_adv, hit_adv, *sums = numbers[i][k]
            row = Row(case.id, case.volume, case.group, task.classes[k], n_target, n_clean, hit_clean, n_adv, hit_adv,
                      of_size, of_linf, *cost)  # fmt: skip
            yield _placed(row, case, sums)


def _placed(row: Row, case: Case, sums: Sequence[int]) -> Row:
    """The row with its voxel's size, and its sums of indices counted from the scan's first slice."""
    z_clean, y_clean, x_clean, z_adv, y_adv, x_adv = sums
    z_mm = case.spacing_mm[-3] if len(case.spacing_mm) == 3 else math.nan
    if case.stack is not None:
        z_mm = case.stack.spacing_mm
        z_clean, z_adv = case.stack.index * row.n_clean, case.stack.index * row.n_adv
    y_mm, x_mm = case.spacing_mm[-2:]
    return replace(row, z_mm=z_mm, y_mm=y_mm, x_mm=x_mm, z_clean=z_clean, y_clean=y_clean, x_clean=x_clean,
                   z_adv=z_adv, y_adv=y_adv, x_adv=x_adv)  # fmt: skip


def run_attacks(
    model: Model,
    data: Data,
    todo: Sequence[tuple[Attack, RunFolder]],
    refs: Sequence[Any],
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
        open_ = [(attack, folder) for attack, folder in todo if not folder.has(number)]
        if open_:
            cases = [data.read(ref) for ref in chunk]
            batches = [Batch.of(cases[i : i + batch_size], device) for i in range(0, len(cases), batch_size)]
            done = attack_chunk(
                model,
                batches,
                [attack for attack, _ in open_],
                metrics=metrics,
                seed=seed,
                keep_images=keep_images,
            )
            for index, rows, seconds, images in done:
                folder = open_[index][1]
                if images is not None:
                    ids = [case.id for case in cases]
                    folder.write_images(number, dict(zip(ids, images.numpy(), strict=True)))
                folder.write(number, rows, seconds)
        yield len(chunk) * len(todo)
