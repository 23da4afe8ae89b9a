"""The effect of attacks on one batch, measured on a pass of the model of its own.

It trusts nobody: it runs the model again on what an attack returned, and checks the ball and the box itself.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.errors import NotFiniteError, listed
from medseg_attack.evaluation.crafting import Crafted, case_budgets, craft
from medseg_attack.metrics.overlap import measure
from medseg_attack.metrics.scans import Bits, unpacked
from medseg_attack.metrics.visibility import visibility
from medseg_attack.numerics.log_odds import is_finite, without_nan
from medseg_attack.numerics.noise import noise_of
from medseg_attack.registry.foreign import at_fault
from medseg_attack.runs.rows import WITHOUT_ANSWER, Change, Row
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.budgets import Budget
from medseg_attack.threat.goals.aim import find_aim
from medseg_attack.types import Attack, Batch, Case, Donors, Image, LogOdds, Mask, Model, PerSample, Prompts, Setting

TOLERANCE = 1e-6  # of a ball's size: what float32 adds to a budget when x - x0 is taken back


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


def mark_faults(rows: Sequence[Row], faults: Mapping[str, set[str]]) -> None:
    """Gives all rows a column for each fault that was met: 1 where it was met on the case."""
    for row in rows:
        row.extra.update({fault: float(row.case in ids) for fault, ids in faults.items() if ids})
