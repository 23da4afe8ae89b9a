"""Attacks run on one batch: at each case's own budget, on images that can be stored, with passes counted."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, TypeAlias
from zlib import crc32

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.finite import FiniteModel
from medseg_attack.attacks.judging import truth_after
from medseg_attack.evaluation.rounding import RoundedModel
from medseg_attack.metrics.scans import Bits, unpacked
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.flows import warped
from medseg_attack.numerics.noise import noise_of
from medseg_attack.numerics.slabs import is_one_slab
from medseg_attack.numerics.stored_values import StoredValues
from medseg_attack.registry import with_eps
from medseg_attack.registry.foreign import at_fault, is_foreign, lent
from medseg_attack.runs.rows import WITHOUT_ANSWER, WITHOUT_GRADIENT, WITHOUT_SLOPE, CaseBudget
from medseg_attack.runtime import wait_for
from medseg_attack.threat.binding import bind
from medseg_attack.threat.budgets import Budget
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.types import (
    Adversarial,
    Attack,
    Ball,
    Batch,
    Case,
    Donors,
    Flow,
    Image,
    Mask,
    Model,
    PerSample,
    Prompts,
    Setting,
    Sweeps,
    SweepsObjectives,
    common,
)

Centre: TypeAlias = Float[Tensor, "b own *s"]  # as `Image`, but an attack on copies of one channel has more of them


@dataclass(frozen=True, eq=False)
class Crafted:
    """The result of one attack on some cases of a batch.

    Attributes:
        index: place of the attack among all that are run.
        positions: places of the cases in the batch.
        attack: the attack at the budget of these cases, bound to them.
        image: perturbed images, as a file holds them where the cases know their files.
        x0: centres of the ball: the untouched images, or those after their anatomy moved; one channel where `image`
            has several copies of it.
        flow: how anatomy moved; None where nothing did.
        truth: the truth on the images: what the attack says of its edits, or that of the cases where anatomy went.
        prompts: what a promptable model gets with the images; None: what it draws, as on the untouched ones.
        stored: the values of each case's file; None where there is none that could hold the image.
        cost: forward and backward passes that each case took.
        faults: the cases on which the attack met a fault of the model, by its column in the rows.
        seconds: wall time of the attack.
    """

    index: int
    positions: list[int]
    attack: Attack
    image: Image
    x0: Centre
    flow: Flow | None
    truth: Mask
    prompts: Prompts | None
    stored: list[Tensor] | None
    cost: Sequence[tuple[int, int]]
    faults: Mapping[str, Sequence[Case]]
    seconds: float


def craft(
    model: Model,
    batch: Batch,
    attacks: Sequence[Attack],
    budgets: Sequence[Budget | None],
    seed: int,
    donors: Donors | None = None,
    clean: Sequence[Bits] | None = None,
) -> Iterator[Crafted]:
    """Runs every attack on one batch; attacks that differ in their budget or objective alone may share work.

    Args:
        budgets: budget of each attack whose size is not a fraction of the window; None: the attack's own ball.
        donors: cases whose masks a goal may take.
        clean: the model's segmentation of each untouched image, packed, which saves attacks a pass.

    Raises:
        RuntimeError: an attack changed the untouched images or masks in place; an InputError, if it is of somebody
            else's.
    """
    setting = Setting(model.task, batch.cases, donors, stream=f"attack {seed}")
    plain = [i for i, budget in enumerate(budgets) if budget is None]
    all_positions = list(range(len(batch.cases)))
    for indices in _group_by_attack(attacks, plain):
        yield from _attack_cases(model, batch, clean, setting, all_positions, [(i, attacks[i]) for i in indices], seed)
    if len(plain) == len(budgets):
        return
    noise = noise_of(batch.image)
    for i, budget in enumerate(budgets):
        if budget is not None:
            eps = [case.budget for case in case_budgets(batch.cases, noise, budget)]
            for value in dict.fromkeys(eps):  # cases of one budget go together
                positions = [n for n, own_eps in enumerate(eps) if own_eps == value]
                attack = with_eps(attacks[i], value)
                yield from _attack_cases(model, batch, clean, setting, positions, [(i, attack)], seed)


def case_budgets(cases: Sequence[Case], noise: PerSample, budget: Budget | None, eps: float = 0.0) -> list[CaseBudget]:
    """The budget of each case; `eps` where there is no budget with a unit.

    Args:
        noise: standard deviation of each image's noise, `noise_of`.

    Raises:
        InputError: a scan has no such unit.
    """
    result = []
    for case, sigma in zip(cases, noise.tolist(), strict=True):
        width, storage = common(case.window.width), case.storage
        slope = abs(common(storage.slope)) if storage else float("nan")
        level = slope / width if storage is None or not storage.stored.dtype.is_floating_point else 0.0
        if budget is not None:
            eps = budget.fraction(width=width, slope=slope, unit=case.window.unit, noise=sigma, case=case.id)
        result.append(CaseBudget(eps, width, level, sigma))
    return result


def _attack_cases(
    model: Model,
    batch: Batch,
    clean: Sequence[Bits] | None,
    setting: Setting,
    positions: list[int],
    attacks: Sequence[tuple[int, Attack]],
    seed: int,
) -> Iterator[Crafted]:
    """Runs attacks that share work on some cases of the batch."""
    image, target = batch.image, batch.target
    if len(positions) < len(batch.cases):
        image, target, clean = image[positions], target[positions], None
        setting = setting.at(torch.tensor(positions))
    cases = setting.cases
    seeds = [crc32(f"{seed}/{case.id}".encode()) for case in cases]
    bound, values = bind(model, setting), StoredValues.of(cases, image.device)
    finite = FiniteModel(bound, cases)
    copies = _lent([attack for _, attack in attacks], image, target)
    # what a model drew for its score is none of an attack's business: one that is bound to its cases is asked again
    known = (copies[0], partial(unpacked, clean, target)) if clean is not None and bound is model else None
    ready = [bind(attack, setting) for _, attack in attacks]
    # for a sweep the widest ball: the narrower ones round inside it, and what is returned is rounded in its own
    widest = max((attack.ball for attack in ready), key=lambda ball: ball.limit)
    # where anatomy moves there are no stored values yet to round towards: such an attack sees floats
    sees_floats = values is None or any(attack.ball.moves_anatomy for attack in ready)
    in_windows = isinstance(bound, SegModel) and bound.sees_windows_alone(image) and not is_one_slab(image)
    counted = CountedModel(
        finite if values is None or sees_floats else RoundedModel(finite, values, image, widest, cases, in_windows),
        known=known,
    )
    alike = [with_eps(attack, 0.0) for _, attack in attacks]  # those of one objective
    untouched = tuple(map(_changes, copies))
    results = _results(ready, alike, counted, *copies, seeds)
    cost: tuple[int, int] | None = None

    def crafted(n: int) -> Crafted:
        nonlocal cost
        start, index, attack = time.perf_counter(), attacks[n][0], ready[n]
        if n and alike[n] != alike[n - 1]:  # faults that were met with another objective are not this one's
            finite.forget()
        adversarial = next(results)
        wait_for(image.device)
        if tuple(map(_changes, copies)) != untouched or not all(
            own is other or torch.equal(own, other) for own, other in zip(copies, (image, target), strict=True)
        ):
            raise at_fault(
                attack,
                "expected the untouched images and masks as they were, got some that were changed in place; the attack "
                "is at fault: let it change a clone",
            )
        _check_result(attack, adversarial, image, target)
        # shared passes are charged to each in full, as if it ran alone; seconds are those that it added
        cost = cost or (counted.forwards, counted.backwards)
        x, x0, stored = _as_stored(adversarial, image, values, attack.ball)
        passes = adversarial.passes
        costs = [cost] * len(cases) if passes is None else [(n, m) for n, m in passes.tolist()]
        seconds = time.perf_counter() - start
        truth = truth_after(adversarial, target, model.task.exclusive)
        faults = _faults(finite)
        moved = x0, adversarial.flow, truth, adversarial.prompts
        return Crafted(index, positions, attack, x, *moved, stored, costs, faults, seconds)

    # no name here holds a result: the images of one attack are gone before the next one runs
    yield from (crafted(n) for n in range(len(ready)))


def _lent(attacks: Sequence[Attack], image: Image, target: Mask) -> tuple[Image, Mask]:
    """The untouched images and masks that attacks get: clones, where a part is of somebody else's."""
    foreign = next(filter(is_foreign, attacks), None)
    return lent(foreign, image), lent(foreign, target)


def _check_result(attack: Attack, result: Any, image: Image, target: Mask) -> None:
    """Refuses what is not the result of an attack on these images: nothing of it would be scored, or something else.

    Raises:
        RuntimeError: it is not; an InputError, if the attack is of somebody else's.
    """
    if not isinstance(result, Adversarial):
        raise at_fault(
            attack,
            f"expected an Adversarial from an attack, got a {type(result).__name__}; the attack is at fault: let it "
            "return judge(model, self.ball, x, image, target)",
        )
    n, channels, *grid = image.shape
    if channels == 1 and isinstance(result.image, Tensor) and result.image.ndim == image.ndim:
        channels = result.image.shape[1]  # a variant may perturb copies of the channel one by one
    expected = {
        "image": ((n, channels, *grid), image.dtype),
        "flow": ((n, len(grid), *grid), image.dtype),
        "truth": (tuple(target.shape), torch.bool),
        "passes": ((n, 2), torch.int64),
    }
    for name, (shape, dtype) in expected.items():
        value = getattr(result, name)
        if value is None and name != "image":
            continue
        own = value if isinstance(value, Tensor) else None
        if own is None or (tuple(own.shape), own.dtype) != (shape, dtype):
            got = type(value).__name__ if own is None else f"{tuple(own.shape)} in {own.dtype}"
            raise at_fault(
                attack,
                f"expected {name} of an attack's result as a tensor {shape} in {dtype}, got {got}; the attack is at "
                "fault",
            )


def _changes(tensor: Tensor) -> int:
    """How often a tensor was changed in place, as far as torch counts it."""
    return 0 if tensor.is_inference() else tensor._version


def _faults(model: FiniteModel) -> dict[str, Sequence[Case]]:
    """The cases on which each fault was met so far; their number is small, and usually 0."""
    return {
        WITHOUT_GRADIENT: model.lost_gradients.cases,
        WITHOUT_ANSWER: model.lost_answers.cases,
        WITHOUT_SLOPE: model.flat_cases,
    }


def _as_stored(
    adversarial: Adversarial, image: Centre, values: StoredValues | None, ball: Ball
) -> tuple[Image, Centre, list[Tensor] | None]:
    """The images of an attack as a file holds them, the centres of its ball, and the values of that file."""
    x, flow = adversarial.image, adversarial.flow
    if values is None or x.shape != image.shape:
        return x, image if flow is None else warped(image, flow), None
    if flow is not None:
        values = values.warped(flow)
        image = values.image(values.raw, image)
        # the flow moved stored values, the attack moved windowed ones: they differ where the window clips
        x = ball.project(x, image)
    stored = values.raw_nearest(x, image, ball)
    return values.image(stored, image), image, values.files(stored)


def _results(
    attacks: Sequence[Attack], alike: Sequence[Any], model: Model, image: Image, target: Mask, seeds: Sequence[int]
) -> Iterator[Adversarial]:
    """The result of each of several attacks that share work, as `_group_by_attack` has them.

    Args:
        alike: of each attack a key, which is the same for those that differ in their budget alone.
    """
    first = attacks[0]
    if isinstance(first, SweepsObjectives) and first.shares_pass:
        sweeps = []
        for _, places in groupby(range(len(attacks)), alike.__getitem__):
            same: list[Any] = [attacks[n] for n in places]
            sweeps.append((same[0].objective, [attack.ball for attack in same]))
        return first.sweep_objectives(model, image, target, seeds, sweeps)
    if isinstance(first, Sweeps):
        return first.sweep(model, image, target, seeds, [attack.ball for attack in attacks])
    return (attack(model, image, target, seeds) for attack in attacks)


def _group_by_attack(attacks: Sequence[Attack], indices: Sequence[int]) -> list[list[int]]:
    """Groups of those attacks that share work: they differ in their budget alone, or in their objective, too.

    In a group those of one objective are next to each other.
    """
    groups: dict[Any, dict[Any, list[int]]] = {}
    for index in indices:
        same = shared = with_eps(attacks[index], 0.0)
        if isinstance(shared, SweepsObjectives) and shared.shares_pass:
            shared = replace(shared, objective=bce)  # type: ignore[type-var]
        groups.setdefault(shared, {}).setdefault(same, []).append(index)
    return [[index for same in of_objective.values() for index in same] for of_objective in groups.values()]
