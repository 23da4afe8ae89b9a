"""Attacks that know a detector: they climb the objective and stay below its alarm."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.attacks.judging import judge_prediction
from medseg_attack.errors import InputError
from medseg_attack.metrics.harm import harm
from medseg_attack.numerics.samples import reseeded, widen
from medseg_attack.registry import register
from medseg_attack.registry.abilities import Climbs
from medseg_attack.registry.parts import replace_parts
from medseg_attack.threat.binding import bind
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.types import (
    Adversarial,
    AroundAttack,
    AroundModel,
    Attack,
    Ball,
    Bindable,
    Case,
    Image,
    LogOdds,
    Mask,
    Model,
    Objective,
    PerSample,
    Setting,
)

WEIGHTS = (0.1, 1.0, 10.0)
SLACK = 1e-6  # of a ball's size, as float32 adds to a budget


@runtime_checkable
class Alarm(Protocol):
    """A fitted and calibrated detector, as far as an attack needs to know it."""

    def watch(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, PerSample, PerSample]:
        """The model's answer, the score of each case and its excess over the limit, above 0 where there is an alarm."""
        ...


@runtime_checkable
class Rounds(Protocol):
    """A model that rounds an image to what a file can hold, before it asks another model."""

    model: Model

    def rounded(self, image: Image) -> Image: ...


@register(
    "evading",
    kind="attack",
    cost="attack forward, attack backward",
    paper="Carlini & Wagner, arXiv 1705.07263; Tramer et al., arXiv 2002.08347",
    reaches="all in eps",
    shown_by="evading(attack=pgd(steps=8))",
)
@dataclass(frozen=True)
class Evading(Bindable, AroundAttack):
    """An attack that climbs its objective and lowers a detector's score, and keeps what raises no alarm.

    The score counts as far as it is above the limit alone: less would make the scan suspicious for being too usual
    (Carlini & Wagner, arXiv 1705.07263; Tramer et al., arXiv 2002.08347). Of all images that the attack looks at, it
    keeps the most harmful one without an alarm, sample by sample; where there is none, the least suspicious one. What
    has no gradient in a detector lends that of a stand-in (BPDA).

    Attributes:
        detector: one that was fitted and calibrated, such as saved('FILE'); None: the attack itself.
        weight: of the score's excess in standard deviations of clean scores, beside the objective; of several, each is
            climbed. None: 0.1, 1 and 10.

    Raises:
        InputError: a weight is below 0, the detector was not fitted, or the attack moves anatomy.
    """

    attack: Attack = PGD()
    detector: Any = None
    weight: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.detector is not None and not isinstance(self.detector, Alarm):
            raise InputError(
                "expected a detector that was fitted for evading, got one that is not; write saved('FILE'), a file "
                "that medattack detect wrote"
            )
        if not self.weights or min(self.weights) < 0:
            raise InputError(f"expected weights of 0 or more for evading, got {self.weight}; write weight=1")
        if self.attack.ball.moves_anatomy:
            raise InputError(
                "expected an attack that leaves anatomy where it is for evading, got one that moves it; "
                "take another attack"
            )

    @property
    def weights(self) -> tuple[float, ...]:
        """Each weight that is climbed."""
        if self.weight is None:
            return WEIGHTS
        return self.weight if isinstance(self.weight, tuple) else (self.weight,)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        if self.detector is None:
            return self.attack(model, image, target, seeds)
        cases = () if self.setting is None else self.setting.cases
        watched = WatchedModel(model, self.detector, self.ball, image, target, cases)
        for number, weight in enumerate(self.weights):
            attack = _penalised(self.attack, watched, weight, model)
            attack(watched, image, target, reseeded(seeds, "evading", number) if number else seeds)
        x = watched.kept
        with torch.no_grad():
            pred = model.decide(model(x))
        return judge_prediction(model, self.ball, x, image, pred, target)


class WatchedModel(AroundModel):
    """A model that is asked together with a detector, and keeps the best image in a ball that it was asked about.

    Attributes:
        kept: of each sample the most harmful image without an alarm, else the one with the least score.
        excess: of the last images over the detector's limit, with their gradient.
    """

    def __init__(
        self, model: Model, detector: Alarm, ball: Ball, image: Image, target: Mask, cases: Sequence[Case]
    ) -> None:
        self.model, self.detector, self.ball, self.image = model, detector, ball, image
        self.target, self.cases, self.kept = target, tuple(cases), image
        self.excess: PerSample = torch.zeros(len(image), device=image.device)
        # of what is kept: 1 + harm without an alarm, else the excess below 0
        self._rank = torch.full((len(image),), -torch.inf, dtype=torch.float64, device=image.device)
        with torch.no_grad():
            self(image)

    def __call__(self, image: Image) -> LogOdds:
        return self.ask(self.model, image, self.cases, torch.arange(len(self.image), device=image.device))

    def bind(self, setting: Setting) -> "Model":
        """The model of some of its cases."""
        if len(setting.cases) == len(self.cases):
            return self
        index = torch.tensor([self.cases.index(case) for case in setting.cases], device=self.image.device)
        return WatchedPart(self, bind(self.model, setting), setting.cases, index)

    def ask(self, model: Model, image: Image, cases: Sequence[Case], index: Int[Tensor, "n"]) -> LogOdds:
        """The answer on images of the samples at `index`, which are kept if they are better."""
        if image.shape[1:] != self.image.shape[1:] or len(image) != len(index):
            self.excess = image.new_zeros(len(image))  # a smaller copy, which no detector was calibrated for
            return model(image)
        rounds, inner = _unrounded(model)
        stored = image if rounds is None else rounds.rounded(image)  # first, as when a stored scan is screened
        log_odds, _, self.excess = self.detector.watch(inner, stored, cases)
        self._offer(image, log_odds, self.excess.detach(), index)
        return log_odds

    @torch.no_grad()
    def _offer(self, image: Image, log_odds: LogOdds, excess: PerSample, index: Int[Tensor, "n"]) -> None:
        classes = self.model.task.scored_channels
        lost = harm(self.model.decide(log_odds)[:, classes], self.target[index][:, classes])
        rank = torch.where(excess <= 0, 1 + lost.to(self._rank), -excess.to(self._rank))
        inside = self.ball.size(image, self.image[index]) <= self.ball.limit * (1 + SLACK) + SLACK
        inside &= (image >= 0).flatten(1).all(1) & (image <= 1).flatten(1).all(1)
        take = inside & (rank > self._rank[index])
        self._rank[index] = torch.where(take, rank, self._rank[index])
        self.kept = self.kept.index_copy(0, index, torch.where(widen(take, image), image.detach(), self.kept[index]))


class WatchedPart(AroundModel):
    """A watched model of some of its cases, bound to them."""

    def __init__(self, whole: WatchedModel, model: Model, cases: Sequence[Case], index: Int[Tensor, "n"]) -> None:
        self.whole, self.model, self.cases, self.index = whole, model, tuple(cases), index

    def __call__(self, image: Image) -> LogOdds:
        return self.whole.ask(self.model, image, self.cases, self.index)

    def bind(self, setting: Setting) -> Model:
        """The model of some of these cases."""
        return self.whole.bind(setting)


@dataclass(frozen=True, eq=False)
class Penalised:
    """An objective less the excess of a detector's score on the images that the model was last asked about."""

    height: Objective
    watched: WatchedModel
    weight: float

    def __call__(self, log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
        height = self.height(log_odds, target, progress)
        if len(self.watched.excess) != len(height):
            return height
        return height - self.weight * functional.relu(self.watched.excess).to(height)


def _unrounded(model: Model) -> tuple[Rounds | None, Model]:
    """The rounding before a model, and the model behind it, whose passes are counted as before.

    A detector that changes images, such as a squeezer, would have its own images rounded into the ball otherwise.
    """
    inner = model
    while isinstance(inner, CountedModel):
        inner = inner.model
    if not isinstance(inner, Rounds):
        return None, model
    return inner, CountedModel(inner.model, model) if isinstance(model, CountedModel) else inner.model


def _penalised(attack: Attack, watched: WatchedModel, weight: float, model: Model) -> Attack:
    """The attack in which every part that climbs an objective climbs the penalised one."""

    def change(part: Any) -> Any:
        if not isinstance(part, Climbs) or not isinstance(part, Attack):
            return None
        height = for_task(cast(Objective, part.objective), model.task)
        return replace(cast(Any, part), objective=Penalised(height, watched, weight))

    return cast(Attack, replace_parts(attack, change))
