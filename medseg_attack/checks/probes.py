"""Checks by small attacks on a few cases: would somebody who tries harder get further than the run will?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import isfunction
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from medseg_attack.attacks.composed.adaptive import MeanOfPasses, is_averaged
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.finite import FiniteModel
from medseg_attack.attacks.gradient.apgd import APGD
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.checks.flags import Evidence, Finding, by_severity, upper_bound
from medseg_attack.checks.model.answers import check_repeated_passes
from medseg_attack.checks.model.asking import BROKEN, check_scene, scene_of
from medseg_attack.checks.model.gradients import check_finite
from medseg_attack.checks.model.scene import Scene
from medseg_attack.checks.rows.strength import (
    LATE_GAIN,
    MANY_STEPS,
    check_gradient_free_attacks,
    check_order_of_steps,
    check_too_few_steps,
    check_unlimited_budget,
)
from medseg_attack.errors import listed, plural
from medseg_attack.metrics.overlap import dice
from medseg_attack.numerics.samples import draw_signs, widen
from medseg_attack.registry import spec
from medseg_attack.registry.abilities import Aimed, Climbs, ClimbsInSteps
from medseg_attack.registry.parts import walk
from medseg_attack.storage.stages import begin_stage
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce, soft_dice
from medseg_attack.types import Attack, Ball, Batch, Donors, Fittable, Image, LogOdds, Mask, Model, Objective, PerSample

MARGIN = 0.02  # of Dice: what another attack must gain to count
OBJECTIVE_MARGIN = 0.05  # between objectives, which differ by as much on healthy models
QUERIES = 24
NEARLY_BLIND = (64 / 255, 128 / 255)  # at the second every image can become the same grey


def preflight(
    model: Model,
    batch: Batch,
    attacks: Sequence[Attack],
    typed: Mapping[float, str] = MappingProxyType({}),
    donors: Donors | None = None,
) -> list[Finding]:
    """Findings of `check_model`, then of the probes; they cost about five times what attacking the batch costs.

    Args:
        batch: a few cases with organs.
        typed: what stands for an eps in findings, such as the budget in Hounsfield units that it is on these cases.
        donors: cases whose masks the goal of an attack may take.
    """
    scene = scene_of(model, batch, attacks, donors)
    findings = check_scene(scene, attacks)
    flags = {finding.flag for finding in findings}
    if any(flag.code in BROKEN for flag in flags) or not any(isinstance(attack, Climbs) for attack in scene.attacks):
        return findings
    finite = FiniteModel(scene.model, batch.cases)
    scene = replace(scene, model=finite)
    begin_stage("trying attacks on a few cases")
    findings += check_blindness(scene)
    if not any(map(is_averaged, attacks)):  # which knows that the model is random: probes of one pass say nothing
        findings += check_averaging(scene) if check_repeated_passes.flag in flags else _try_harder(scene, typed)
    return by_severity([*findings, *check_finite_probes(finite)])


@check_finite.flag
def check_finite_probes(model: FiniteModel) -> Iterator[Evidence]:
    """MA022: an output or a gradient of the probes is NaN or infinite on a few cases."""
    if model.lost_gradients:
        cases = listed([case.id for case in model.lost_gradients.cases])
        yield Evidence(cases, "NaN or infinity in the gradient of an objective by the image")
    if model.lost_answers:
        cases = listed([case.id for case in model.lost_answers.cases])
        yield Evidence(cases, "NaN or infinity in the output on attacked images")


def _try_harder(scene: Scene, typed: Mapping[float, str]) -> list[Finding]:
    """Findings from watching the run's strongest attack on these cases, and from attacking differently.

    Of an attack with a goal, or that stops when it succeeds, Dice with the truth does not say how far it got.
    """
    unaimed = (attack for attack in scene.attacks if not any(isinstance(part, Aimed) for part in walk(attack)))
    scene = replace(scene, attacks=tuple(unaimed))
    attack = strongest(scene.attacks)
    if attack is None:
        return []
    record = watch(scene, attack)
    label = _label(attack, typed)
    findings = check_random_search(scene, attack, record, label)
    if attack.steps > 1:
        findings += check_climb(record, label) + check_last_steps(scene, attack, record, label)
        findings += check_other_objective(scene, attack, record, label)
    return findings


def strongest(attacks: Sequence[Attack]) -> Any:
    """The attack by gradients of most steps, then of the largest budget; None if there is none.

    Other attacks cannot be tried in a ball that has a unit of its own, or another region for every case. One that
    learns has learned nothing yet.
    """
    ready = [attack for attack in attacks if not any(isinstance(part, Fittable) for part in walk(attack))]
    climbing = [attack for attack in ready if isinstance(attack, ClimbsInSteps)]
    able = [a for a in climbing if a.ball.eps > 0 and not a.ball.unit and a.ball.unrestricted is a.ball]
    return max(able, key=lambda attack: (attack.steps, attack.ball.eps), default=None)


def mean_dice(model: Model, pred: Mask, target: Mask) -> PerSample:
    """Dice of hard masks, mean over the scored classes that the case has; 1 for a case that has none."""
    classes = model.task.scored_channels
    pred, target = pred[:, classes], target[:, classes]
    present = target.flatten(2).any(2)
    mean: PerSample = (dice(pred, target, empty=0.0) * present).sum(1) / present.sum(1).clamp(min=1)
    return torch.where(present.any(1), mean, torch.ones_like(mean))


class RecordingModel(CountedModel):
    """A model that keeps the last image it was asked about."""

    last: Image

    def __call__(self, image: Image) -> LogOdds:
        self.last = image.detach()
        return super().__call__(image)


@dataclass(eq=False)  # a table of objectives looks it up by its hash
class RecordingObjective:
    """An objective that writes down what an attack sees.

    Attributes:
        image: untouched.
        losses, dices: per forward pass with gradient, (samples,).
        final: Dice of the image that the attack returned.
        touched: whether that image is another than the untouched one, per sample.
        beyond: whether it looked at images that it cannot return: ahead of its place, or resized.
    """

    model: "RecordingModel"
    objective: Objective
    ball: Ball
    image: Image
    losses: list[Tensor] = field(default_factory=list)
    dices: list[Tensor] = field(default_factory=list)
    final: Tensor = field(default_factory=lambda: torch.zeros(0))
    touched: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    beyond: list[bool] = field(default_factory=list)

    def __call__(self, log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
        x = self.model.last
        inside = x.shape == self.image.shape and (self.ball.size(x, self.image) <= self.ball.limit * (1 + 1e-4)).all()
        self.beyond.append(not bool(inside))
        loss = self.objective(log_odds, target, progress)
        self.losses.append(loss.detach())
        reached = mean_dice(self.model, self.model.decide(log_odds), target)
        self.dices.append(reached if inside else torch.ones_like(reached))
        return loss

    def note_final(self, x: Image, target: Mask) -> None:
        with torch.no_grad():
            log_odds = self.model(x)
        self.losses.append(self.objective(log_odds, target, 1.0))
        self.final = mean_dice(self.model, self.model.decide(log_odds), target)
        self.touched = (x != self.image).flatten(1).any(1)

    @property
    def scope(self) -> str:
        """The cases that numbers are of, in words: not those of the table."""
        return f"mean over the {plural(len(self.final), 'case')} looked at"

    @property
    def best(self) -> Tensor:
        """The lowest Dice that was seen, per sample."""
        return torch.stack([*self.dices, self.final]).amin(0)


def watch(scene: Scene, attack: Any, objective: Objective | None = None) -> RecordingObjective:
    """A record of one run of the attack (without restarts), with its own objective or another."""
    model = RecordingModel(scene.model)
    record = RecordingObjective(model, objective or attack.objective, attack.ball, scene.image)
    once = {"restarts": 1} if isinstance(attack, PGD | APGD) else {}
    result = replace(attack, objective=record, **once)(model, scene.image, scene.batch.target, range(len(scene.image)))
    record.note_final(result.image, scene.batch.target)
    return record


@check_order_of_steps.flag
def check_climb(record: RecordingObjective, label: str) -> Iterator[Evidence]:
    """MA006: the loss does not rise from the start to the end of the run's strongest attack on a few cases; or the
    image it returns is better for the model by 0.02 of Dice than one it passed by.
    """
    first, last = record.losses[0], record.losses[-1]
    if len(record.losses) > 2:  # where no step lowered Dice, the untouched image is kept: its loss says nothing of them
        last = torch.where(record.touched, last, torch.stack(record.losses[1:-1]).amax(0))
    first, last = first.mean(), last.mean()
    lost = (record.final - record.best).mean()
    if last <= first:
        yield Evidence(label, f"its loss went from {first:.3g} to {last:.3g}")
    elif lost > MARGIN and not any(record.beyond):
        yield Evidence(label, f"it passed by an image whose Dice is lower by {lost:.3f}, {record.scope}")


@check_too_few_steps.flag
def check_last_steps(scene: Scene, attack: Any, record: RecordingObjective, label: str) -> Iterator[Evidence]:
    """MA007: the second half of the strongest attack's steps lowers Dice by more than 0.02 on a few cases, and, if
    there are 40 steps or more, twice as many lower it by more than 0.05.
    """
    if len(record.dices) < 4 or any(record.beyond):
        return
    half = torch.stack(record.dices[: len(record.dices) // 2]).amin(0)
    extra = (half - record.best).mean()
    if extra <= MARGIN:
        return
    if attack.steps < MANY_STEPS:
        yield Evidence(label, f"the second half of its steps took another {extra:.3f} of Dice, {record.scope}")
        return
    longer = watch(scene, replace(attack, steps=2 * attack.steps))
    if (extra := (record.best - longer.best).mean()) > LATE_GAIN:
        yield Evidence(label, f"{2 * attack.steps} steps reach a Dice lower by {extra:.3f}, {record.scope}")


@check_gradient_free_attacks.flag
def check_random_search(scene: Scene, attack: Any, record: RecordingObjective, label: str) -> Iterator[Evidence]:
    """MA010: 24 queries of a random search reach a Dice that is lower by 0.02 than that of the strongest attack by
    gradients at the same budget.
    """
    searched = search(scene, attack.ball)
    if record.final.mean() - searched.mean() > MARGIN:
        numbers = f"{QUERIES} queries reach Dice {searched.mean():.3f}, the attack {record.final.mean():.3f}"
        yield Evidence(label, f"{numbers}, {record.scope}")


@upper_bound(
    "MA023",
    "another objective does more",
    "attack with several objectives, e.g. --loss bce --loss soft_dice, and report the worst",
)
def check_other_objective(scene: Scene, attack: Any, record: RecordingObjective, label: str) -> Iterator[Evidence]:
    """MA023: the run's strongest attack reaches a Dice lower by 0.05 on a few cases if it climbs `soft_dice` (or `bce`,
    if the run has `soft_dice`) instead of the run's objectives.

    No objective is the strongest everywhere; those that average over pixels forget small organs.

    What to do: Attack with several objectives and report the worst per case.
    """
    like: list[Any] = [a for a in scene.attacks if _without_objective(a) == _without_objective(attack)]
    by_objective = {_objective_name(a): a for a in like if _objective_name(a) != _objective_name(attack)}
    other = bce if soft_dice in [one.objective for one in like if isinstance(one, Climbs)] else soft_dice
    of_run = torch.stack([record.best, *(watch(scene, a).best for a in by_objective.values())]).amin(0)
    extra = (of_run - watch(scene, attack, other).best).mean()
    if extra > OBJECTIVE_MARGIN:
        yield Evidence(label, f"{spec(other)} reaches a Dice lower by {extra:.3f}, {record.scope}")


@check_unlimited_budget.flag
def check_blindness(scene: Scene) -> Iterator[Evidence]:
    """MA009: PGD on `soft_dice` leaves more than half of the clean Dice at 64/255 and at 128/255."""
    clean = mean_dice(scene.model, scene.model.decide(scene.log_odds), scene.batch.target).mean()
    left = clean
    if clean < 0.3 or not scene.batch.target[:, scene.model.task.scored_channels].any():  # nothing to break
        return
    for eps in NEARLY_BLIND:
        attack = PGD(Linf(eps), soft_dice, steps=10, random_start=False)
        result = attack(scene.model, scene.image, scene.batch.target, range(len(scene.image)))
        with torch.no_grad():
            pred = scene.model.decide(scene.model(result.image))
        left = mean_dice(scene.model, pred, scene.batch.target).mean()
        if left <= clean / 2:
            return
    yield Evidence("pgd with soft_dice", f"Dice {left:.3f} of {clean:.3f} is left at eps 128/255")


@upper_bound(
    "MA034", "averaging over the model's randomness makes the attack stronger", "attack the average of several passes"
)
def check_averaging(scene: Scene) -> Iterator[Evidence]:
    """MA034: the model is randomised, and PGD on the mean of four passes per step reaches a Dice lower by 0.02 than PGD
    on one pass.

    The randomness hides the direction; its average does not.

    What to do: Attack the average, and score fresh passes.
    """
    attack = PGD(Linf(scene.eps), soft_dice, steps=10, keep_worst=False)
    reached = []
    for model in (scene.model, MeanOfPasses(scene.model, 4)):
        result = attack(model, scene.image, scene.batch.target, range(len(scene.image)))
        with torch.no_grad():
            fresh = [scene.model.decide(scene.model(result.image)) for _ in range(8)]
        reached.append(torch.stack([mean_dice(scene.model, pred, scene.batch.target) for pred in fresh]).mean())
    single, averaged = reached
    if single - averaged > MARGIN:
        yield Evidence("pgd with soft_dice", f"Dice {averaged:.3f} instead of {single:.3f} with 4 passes a step")


def search(scene: Scene, ball: Ball) -> PerSample:
    """The Dice that random search reaches: a draw of signs whose squares are flipped while that does harm."""
    target = scene.batch.target
    signs = draw_signs(scene.image, range(len(scene.image)))
    rng = torch.Generator().manual_seed(0)
    best = lowest = torch.full((len(scene.image),), -torch.inf, device=scene.image.device)
    kept = signs
    for query in range(QUERIES):
        trial = signs if query == 0 else _flipped(kept, rng, query)
        x = ball.project(scene.image + ball.step(trial, scene.image), scene.image)
        with torch.no_grad():
            log_odds = scene.model(x)
        pred = scene.model.decide(log_odds)
        value = soft_dice(log_odds, target).to(best)
        better = value > best
        kept = torch.where(widen(better, x), trial, kept)
        best = torch.maximum(best, value)
        lowest = torch.maximum(lowest, 1 - mean_dice(scene.model, pred, target).to(best))
    return 1 - lowest


def _flipped(signs: Image, rng: torch.Generator, query: int) -> Image:
    """Signs turned in a random square that shrinks as the search goes on; every sample in the same place."""
    moved = signs.clone()
    window: list[slice] = [slice(None), slice(None)]
    for n in signs.shape[2:]:
        side = max(1, int(n * (0.5 if query < QUERIES // 2 else 0.25)))
        start = int(torch.randint(n - side + 1, (1,), generator=rng))
        window.append(slice(start, start + side))
    moved[tuple(window)] *= -1
    return moved


def _without_objective(attack: Any) -> Any:
    return replace(cast(Any, attack), objective=bce) if isinstance(attack, Climbs) else attack


def _objective_name(attack: Any) -> str:
    if not isinstance(attack, Climbs):
        return ""
    try:
        return spec(attack.objective)
    except TypeError:  # one that was never registered
        return attack.objective.__name__ if isfunction(attack.objective) else type(attack.objective).__name__


def _label(attack: Any, typed: Mapping[float, str]) -> str:
    eps = typed.get(attack.ball.eps) or spec(attack.ball.eps)
    return f"{attack.steps}-step attack, {_objective_name(attack)}, eps {eps}"
