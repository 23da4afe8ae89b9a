"""Small attacks of our own on a few cases: would somebody who tries harder get further than the run will?"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.checks.flags import Finding, by_severity
from medseg_attack.checks.model import Scene, check_model
from medseg_attack.numerics.samples import draw, widen
from medseg_attack.registry import spec
from medseg_attack.registry.parts import walk
from medseg_attack.threat.balls.base import plain
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce, soft_dice
from medseg_attack.types import Attack, Ball, Batch, Image, LogOdds, Mask, Model, Objective, PerSample, Task, informed

MARGIN = 0.02  # of Dice: what another attack must gain to count
OBJECTIVE_MARGIN = 0.05  # between objectives, which differ by as much on healthy models
QUERIES = 24
NEARLY_BLIND = (64 / 255, 128 / 255)  # at the second every image can become the same grey


def preflight(model: Model, batch: Batch, attacks: Sequence[Attack]) -> list[Finding]:
    """`before`, then the probes; it costs about as much as attacking five times as many cases as the batch has.

    Args:
        batch: a few cases with organs.
    """
    model = informed(model, batch.cases)
    with torch.no_grad():
        scene = Scene(model, batch, tuple(attacks), model(batch.image))
    findings: list[Finding | None] = list(check_model(model, batch, attacks))
    hopeless = {"MA002", "MA022", "MA025"} & {finding.code for finding in findings if finding}
    if hopeless or not any(hasattr(attack, "objective") for attack in attacks):
        return by_severity([finding for finding in findings if finding])
    findings.append(unbroken(scene))
    if any(finding and finding.code == "MA003" for finding in findings):
        findings.append(averaging(scene))
    else:
        findings += _tried_harder(scene)
    return by_severity([finding for finding in findings if finding])


def _tried_harder(scene: Scene) -> list[Finding | None]:
    """What is found by watching the run's strongest attack on these cases, and by attacking differently.

    Of an attack with a goal, or that stops when it succeeds, Dice with the truth does not say how far it got.
    """
    scene = replace(scene, attacks=tuple(attack for attack in scene.attacks if not _is_aimed(attack)))
    attack = strongest(scene.attacks)
    if attack is None:
        return []
    watched = watch(scene, attack)
    label = _label(attack)
    findings = [beaten_by_search(scene, attack, watched, label)]
    if attack.steps > 1:
        findings += [
            descends(watched, label),
            unfinished(watched, label),
            beaten_by_objective(scene, attack, watched, label),
        ]
    return findings


def strongest(attacks: Sequence[Attack]) -> Any:
    """The attack by gradients of most steps, then of the largest budget; None if there is none."""
    able: list[Any] = [
        a for a in attacks if hasattr(a, "objective") and hasattr(a, "steps") and a.ball.eps > 0 and _in_norm(a.ball)
    ]
    return max(able, key=lambda a: (a.steps, a.ball.eps), default=None)


def _is_aimed(attack: Attack) -> bool:
    return any(hasattr(part, "goal") for part in walk(attack))


def _in_norm(ball: Ball) -> bool:
    """Whether other attacks can be tried in a ball: not where it has a unit of its own, or another region per case."""
    return not getattr(ball, "unit", "") and plain(ball) is ball


def dice(model: Model, pred: Mask, target: Mask) -> PerSample:
    """Dice of hard masks, mean over the scored classes that the case has; 1 for a case that has none."""
    classes = list(model.task.scored)
    pred, target = pred[:, classes].flatten(2), target[:, classes].flatten(2)
    present = target.any(2)
    each = 2 * (pred & target).sum(2) / (pred.sum(2) + target.sum(2)).clamp(min=1)
    mean: PerSample = (each * present).sum(1) / present.sum(1).clamp(min=1)
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
        beyond: whether it looked at images that it cannot return: ahead of its place, or resized.
    """

    model: "RecordingModel"
    objective: Objective
    ball: Ball
    image: Image
    losses: list[Tensor] = field(default_factory=list)
    dices: list[Tensor] = field(default_factory=list)
    final: Tensor = field(default_factory=lambda: torch.zeros(0))
    beyond: list[bool] = field(default_factory=list)

    def __call__(self, log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
        x = self.model.last
        inside = x.shape == self.image.shape and (self.ball.size(x, self.image) <= self.ball.limit * (1 + 1e-4)).all()
        self.beyond.append(not bool(inside))
        loss = self.objective(log_odds, target, progress)
        self.losses.append(loss.detach())
        reached = dice(self.model, self.model.decide(log_odds), target)
        self.dices.append(reached if inside else torch.ones_like(reached))
        return loss

    def note_final(self, x: Image, target: Mask) -> None:
        with torch.no_grad():
            log_odds = self.model(x)
        self.losses.append(self.objective(log_odds, target, 1.0))
        self.final = dice(self.model, self.model.decide(log_odds), target)

    @property
    def best(self) -> Tensor:
        """The lowest Dice that was seen, per sample."""
        return torch.stack([*self.dices, self.final]).amin(0)


def watch(scene: Scene, attack: Any, objective: Objective | None = None) -> RecordingObjective:
    """One run of the attack (without restarts), with its own objective or another."""
    model = RecordingModel(scene.model)
    watched = RecordingObjective(model, objective or attack.objective, attack.ball, scene.image)
    once = {"restarts": 1} if hasattr(attack, "restarts") else {}
    found = replace(attack, objective=watched, **once)(model, scene.image, scene.batch.target, range(len(scene.image)))
    watched.note_final(found.image, scene.batch.target)
    return watched


def descends(watched: RecordingObjective, label: str) -> Finding | None:
    """The loss at the end against that at the start; then what was returned against the best that was seen."""
    first, last = watched.losses[0].mean(), watched.losses[-1].mean()
    if last <= first:
        return Finding("MA006", label, f"its loss went from {first:.3g} to {last:.3g}")
    lost = (watched.final - watched.best).mean()
    if lost > MARGIN and not any(watched.beyond):
        return Finding("MA006", label, f"it passed by an image whose Dice is lower by {lost:.3f}")
    return None


def unfinished(watched: RecordingObjective, label: str) -> Finding | None:
    """MA007: the best Dice of the first half of the steps against the best of all."""
    if len(watched.dices) < 4 or any(watched.beyond):
        return None
    half = torch.stack(watched.dices[: len(watched.dices) // 2]).amin(0)
    gained = (half - watched.best).mean()
    if gained <= MARGIN:
        return None
    return Finding("MA007", label, f"the second half of its steps took another {gained:.3f} of Dice")


def beaten_by_search(scene: Scene, attack: Any, watched: RecordingObjective, label: str) -> Finding | None:
    """MA010, at the attack's own budget."""
    found = search(scene, attack.ball)
    if (watched.final.mean() - found.mean()) <= MARGIN:
        return None
    seen = f"{QUERIES} queries reach Dice {found.mean():.3f}, the attack {watched.final.mean():.3f}"
    return Finding("MA010", label, seen)


def beaten_by_objective(scene: Scene, attack: Any, watched: RecordingObjective, label: str) -> Finding | None:
    """The same attack with soft_dice, or with bce where the run has soft_dice; against all objectives of the run."""
    like: list[Any] = [a for a in scene.attacks if _without(a) == _without(attack)]
    asked = {_named(a): a for a in like if _named(a) != _named(attack)}
    other = bce if soft_dice in [getattr(a, "objective", None) for a in like] else soft_dice
    of_run = torch.stack([watched.best, *(watch(scene, a).best for a in asked.values())]).amin(0)
    gained = (of_run - watch(scene, attack, other).best).mean()
    if gained <= OBJECTIVE_MARGIN:
        return None
    return Finding("MA023", label, f"{spec(other)} reaches a Dice lower by {gained:.3f}")


def unbroken(scene: Scene) -> Finding | None:
    """PGD on soft_dice at budgets where a model that sees anything at all can be made blind."""
    clean = dice(scene.model, scene.model.decide(scene.log_odds), scene.batch.target).mean()
    left = clean
    if clean < 0.3:  # nothing to break
        return None
    for eps in NEARLY_BLIND:
        attack = PGD(Linf(eps), soft_dice, steps=10, random_start=False)
        found = attack(scene.model, scene.image, scene.batch.target, range(len(scene.image)))
        with torch.no_grad():
            pred = scene.model.decide(scene.model(found.image))
        left = dice(scene.model, pred, scene.batch.target).mean()
        if left <= clean / 2:
            return None
    return Finding("MA009", "pgd with soft_dice", f"Dice {left:.3f} of {clean:.3f} is left at eps 128/255")


def averaging(scene: Scene) -> Finding | None:
    """Of a randomised model: the same PGD on one pass per step and on the mean of four, scored on fresh passes."""
    own = PGD(Linf(scene.eps), soft_dice, steps=10, keep_worst=False)
    reached = []
    for model in (scene.model, Averaged(scene.model, 4)):
        found = own(model, scene.image, scene.batch.target, range(len(scene.image)))
        with torch.no_grad():
            fresh = [scene.model.decide(scene.model(found.image)) for _ in range(8)]
        reached.append(torch.stack([dice(scene.model, pred, scene.batch.target) for pred in fresh]).mean())
    single, averaged = reached
    if single - averaged <= MARGIN:
        return None
    return Finding("MA034", "pgd with soft_dice", f"Dice {averaged:.3f} instead of {single:.3f} with 4 passes a step")


@dataclass(frozen=True)
class Averaged:
    """The mean log-odds of several passes of a randomised model (expectation over transformation)."""

    model: Model
    passes: int

    @property
    def task(self) -> Task:
        return self.model.task

    def __call__(self, image: Image) -> LogOdds:
        return torch.stack([self.model(image) for _ in range(self.passes)]).mean(0)

    def decide(self, log_odds: LogOdds) -> Mask:
        return self.model.decide(log_odds)


def search(scene: Scene, ball: Ball) -> PerSample:
    """The Dice that random search reaches: a draw of signs whose squares are flipped while that does harm."""
    target, seeds = scene.batch.target, range(len(scene.image))
    signs = _sign(draw(torch.rand, scene.image, seeds))
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
        lowest = torch.maximum(lowest, 1 - dice(scene.model, pred, target).to(best))
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


def _sign(uniform: Tensor) -> Tensor:
    return (uniform < 0.5).to(uniform) * 2 - 1


def _without(attack: Any) -> Any:
    return replace(attack, objective=bce) if hasattr(attack, "objective") else attack


def _named(attack: Any) -> str:
    objective = getattr(attack, "objective", None)
    try:
        return spec(objective) if objective else ""
    except TypeError:  # one that was never registered
        return str(getattr(objective, "__name__", type(objective).__name__))


def _label(attack: Any) -> str:
    return f"{attack.steps}-step attack, {_named(attack)}, eps {spec(attack.ball.eps)}"
