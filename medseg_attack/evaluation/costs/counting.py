"""Passes of an attack, counted on a small part of one case against a model that costs nothing and that nothing moves.

So attacks that stop when they succeed are counted in full. Of an attack with many steps or queries two with fewer are
counted, and the rest follows in proportion.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass, field, fields, is_dataclass, replace
from itertools import count
from sys import maxsize
from typing import Any

import torch

from medseg_attack.errors import InputError
from medseg_attack.evaluation.fitting import fit_once
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.evaluation.studies.opened import OpenedStudy
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.registry.parts import replace_inner, replace_parts, walk
from medseg_attack.registry.table import entry_of
from medseg_attack.runs.grid import Cell
from medseg_attack.types import Attack, Batch, Case, Image, LogOdds, Mask, Setting, Task

MOST = 2000  # steps, queries or the like of an attack that is counted in full
MOST_PASSES = 2000  # of an attack that is counted in full
PERIODS = (60, 12)  # between the two numbers of steps that are counted: what is done every few steps is in both
SIDE = 32  # pixels of the part of a case that attacks are counted on
CERTAIN = 4.0  # log-odds of the model that no attack moves


@dataclass(frozen=True)
class Passes:
    """Passes of an attack per case, and of its fit to all training cases."""

    forwards: int
    backwards: int
    fit_forwards: int
    fit_backwards: int

    def beyond(self, more: "Passes", times: int) -> "Passes":
        """These, and that many times what `more` has beyond them."""
        pairs = zip(astuple(self), astuple(more), strict=True)
        return Passes(*(few + times * (many - few) for few, many in pairs))


class _TooManyPasses(BaseException):  # code of others may catch each Exception
    """An attack takes more passes than are counted in full."""


def count_in_proportion(attack: Attack, count_passes: Callable[..., Passes]) -> Passes:
    """The passes of an attack, of many steps or queries in proportion to those of fewer.

    Args:
        count_passes: counts those of an attack in full, up to `most`.
    """
    attack = _without_idle_numbers(attack)
    return _in_proportion(attack, count_passes) or count_passes(attack, most=maxsize)


def _in_proportion(attack: Attack, count_passes: Callable[[Attack], Passes]) -> Passes | None:
    """The passes of an attack, or what those of two with fewer steps, queries or the like come to.

    Args:
        count_passes: may raise `_TooManyPasses`.

    Returns:
        None if there are too many passes, whatever number of the attack is smaller.
    """
    numbers = sorted(_numbers(attack), key=lambda number: number[2], reverse=True)
    if not numbers or numbers[0][2] <= MOST:
        with suppress(_TooManyPasses):
            return count_passes(attack)
    for part, name, n in numbers:
        for period in PERIODS if n > MOST else PERIODS[-1:]:
            low = 2 * period + n % period
            if low + period < n:
                pair = [_changed(attack, part, name, m) for m in (low, low + period)]
                few, more = (each and _in_proportion(each, count_passes) for each in pair)
                if few and more:
                    return few.beyond(more, (n - low) // period)
    return None


def _without_idle_numbers(attack: Attack) -> Attack:
    """The attack with the default in the place of each large number that its passes, by its own formula, do not
    depend on, such as the order of a polynomial: to count them need not take the time that such a number takes.
    """

    def change(part: Any) -> Any:
        entry = entry_of(part)
        named = set(re.findall(r"\w+", entry.cost)) if entry and entry.kind == "attack" and entry.cost else None
        if named is None or not is_dataclass(part):
            return None
        large = {
            each.name: each.default
            for each in fields(part)
            if each.name not in named and type(getattr(part, each.name)) is int and getattr(part, each.name) > MOST
        }
        changed = part
        with suppress(InputError):  # a number that no other field allows
            changed = replace(part, **{name: n for name, n in large.items() if type(n) is int})  # type: ignore[type-var]
        return replace_inner(changed, change)

    idle: Attack = replace_parts(attack, change)
    return idle


def _numbers(attack: Attack) -> Iterator[tuple[Any, str, int]]:
    """The whole numbers that the attack and its parts have: the part, the field, and its value."""
    for part in walk(attack):
        if is_dataclass(part) and not isinstance(part, type):
            for each in fields(part):
                value = getattr(part, each.name)
                if each.init and isinstance(value, int) and not isinstance(value, bool):
                    yield part, each.name, value


def _changed(attack: Attack, part: Any, name: str, value: int) -> Attack | None:
    """The attack with another number in one of its parts; None where the part takes no such."""
    try:
        changed: Attack = replace_parts(attack, lambda each: replace(part, **{name: value}) if each is part else None)
    except InputError:
        return None
    return changed


def count_passes_on_case(
    opened: OpenedStudy,
    model_ref: ModelRef,
    cell: Cell,
    case: Case,
    n_training: int,
    attack: Attack,
    most: int = MOST_PASSES,
) -> Passes:
    """The passes of an attack, counted on a part of a case; on all of it where a part has no meaning for the attack.

    Raises:
        InputError: the attack refuses the case.
        _TooManyPasses: it takes more than `most`.
    """
    for image in (part_of(case), case):
        batch = Batch.of([image], opened.device)
        model = Unmoved(opened.data.task, batch.target, model_ref.is_random, most)
        try:
            fitted, fit = fit_once(attack, model, batch, n_training)
            donors = opened.donors(model_ref)
            (row, *_) = attack_chunk(model, [batch], [fitted], budgets=[cell.budget], donors=donors)[0].rows
        except InputError:
            if image is case:
                raise
            continue
        return Passes(row.forwards, row.backwards, fit.forwards, fit.backwards)
    raise AssertionError  # the whole case was counted, or it raised


def part_of(case: Case) -> Case:
    """The middle of a case, at most `SIDE` pixels along each axis."""
    window = (slice(None), *(slice((n - min(n, SIDE)) // 2, (n + min(n, SIDE)) // 2) for n in case.image.shape[1:]))
    storage = case.storage and replace(case.storage, stored=case.storage.stored[window])
    return replace(case, image=case.image[window], target=case.target[window], storage=storage)


@dataclass(frozen=True, eq=False)
class Unmoved:
    """A model that answers the truth whatever the image is, with a gradient that leads nowhere.

    Attributes:
        is_random: whether it is to seem so.
        most: passes that it answers.
    """

    task: Task
    target: Mask
    is_random: bool = False
    most: int = MOST_PASSES
    numbers: Iterator[int] = field(default_factory=count)

    def __call__(self, image: Image) -> LogOdds:
        truth = CERTAIN * (2 * self.target.to(image) - 1)
        if (number := next(self.numbers)) >= self.most:
            raise _TooManyPasses
        drawn = 1e-4 * (number % 1000) if self.is_random else 0.0
        return truth + 1e-3 * image.mean(1, keepdim=True) + drawn

    def decide(self, log_odds: LogOdds) -> Mask:
        return log_odds >= 0

    def bind(self, setting: Setting) -> "Unmoved":
        targets = [case.target for case in setting.cases]
        return replace(self, target=torch.stack(targets).to(self.target.device)) if targets else self
