"""The base of attacks that know a detector, and a model that asks the detector about every image that it gets."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.attacks.judging import judge_prediction
from medseg_attack.errors import InputError
from medseg_attack.metrics.harm import harm_of
from medseg_attack.metrics.overlap import counts
from medseg_attack.numerics.samples import reseeded, widen
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

SLACK = 1e-6  # of a ball's size, as float32 adds to a budget
LEAST_DICE = 1e-6  # of an untouched image, of which a share is taken


@runtime_checkable
class Alarm(Protocol):
    """A fitted and calibrated detector, as far as an attack needs to know it."""

    def looks_at_scans(self) -> bool:
        """Whether the score of a case depends on the other cases of its scan."""
        ...

    def watch(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, PerSample, PerSample]:
        """The model's answer, the score of each case and its excess over the limit, above 0 where there is an alarm."""
        ...


@runtime_checkable
class Rounds(Protocol):
    """A model that rounds an image to what a file can hold, before it asks another model."""

    model: Model

    def rounded(self, image: Image) -> Image: ...


@dataclass(frozen=True)
class Evader(Bindable, AroundAttack, ABC):
    """An attack that knows a detector. It runs another attack, whose objective it changes by the detector's score.

    Of all images that the attack tries, it keeps the most harmful one without an alarm, for each sample. If every
    image raises an alarm, it keeps the one with the lowest score. If the detector looks at whole scans, the images of
    a scan are kept together.

    Attributes:
        detector: one that was fitted and calibrated, such as saved('FILE'); None: the attack itself.

    Raises:
        InputError: the detector was not fitted, or the attack moves anatomy.
    """

    attack: Attack = PGD()
    detector: Any = None

    def __post_init__(self) -> None:
        name = type(self).__name__.lower()
        if self.detector is not None and not isinstance(self.detector, Alarm):
            raise InputError(
                f"expected a detector that was fitted for {name}, got one that is not; write saved('FILE'), a file "
                "that medattack detect wrote"
            )
        if self.attack.ball.moves_anatomy:
            raise InputError(
                f"expected an attack that leaves anatomy where it is for {name}, got one that moves it; "
                "take another attack"
            )

    @abstractmethod
    def climbs(self, watched: "WatchedModel") -> Sequence[Callable[[Objective], Objective]]:
        """Functions that change the attack's objective. The attack runs once for each of them, in this order."""

    def labelled(self) -> "Evader":
        """The attack as the table of a detector names it, without what the command line sets for all rows."""
        return self

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        if self.detector is None:
            return self.attack(model, image, target, seeds)
        cases = () if self.setting is None else self.setting.cases
        watched = WatchedModel(model, self.detector, self.ball, image, target, cases)
        for number, other in enumerate(self.climbs(watched)):
            attack = _climbing(self.attack, other, model)
            attack(watched, image, target, reseeded(seeds, "evading", number) if number else seeds)
        x = watched.kept
        with torch.no_grad():
            pred = model.decide(model(x))
        return judge_prediction(model, self.ball, x, image, pred, target)


class WatchedModel(AroundModel):
    """A model with a detector beside it. It keeps the best image of each sample in a ball, of those that it gets.

    Attributes:
        kept: for each sample, the most harmful image without an alarm, or else the one with the lowest score. If the
            detector looks at whole scans, all images of a scan come from one call, the one that harms the scan most:
            images of several calls could raise an alarm together, even if no call raised one.
        point: the images of the last call; None if the detector did not see them.
        asked: the model that answered the last call.
        index: positions in the batch of the samples of the last call.
        excess: how far the scores of the last call are above the detector's limit, with the gradient.
        taken: share of the untouched images' Dice that those of the last call take; below 0 where Dice rose.
    """

    def __init__(
        self, model: Model, detector: Alarm, ball: Ball, image: Image, target: Mask, cases: Sequence[Case]
    ) -> None:
        self.model, self.detector, self.ball, self.image = model, detector, ball, image
        self.target, self.cases, self.kept = target, tuple(cases), image
        self.point: Image | None = None
        self.asked = model
        self.index = torch.arange(len(image), device=image.device)
        self.excess: PerSample = torch.zeros(len(image), device=image.device)
        self.taken: PerSample = torch.zeros(len(image), device=image.device)
        self._untouched: PerSample | None = None
        scans: dict[str, int] = {}
        numbers = [scans.setdefault(case.volume, len(scans)) for case in self.cases]
        self._unit = torch.tensor(numbers, device=image.device) if detector.looks_at_scans() and numbers else self.index
        self._sizes = torch.zeros_like(self.index).index_add(0, self._unit, torch.ones_like(self.index))
        # of what is kept, by unit: 1 + harm without an alarm, else the excess below 0
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
        """The model's answer on images of the samples at `index`; those that are better than the kept ones are kept."""
        if image.shape[1:] != self.image.shape[1:] or len(image) != len(index):
            # a smaller copy, which no detector was calibrated for
            self.point, self.excess = None, image.new_zeros(len(image))
            return model(image)
        rounds, inner = unrounded(model)
        stored = image if rounds is None else rounds.rounded(image)  # first, as when a stored scan is screened
        log_odds, _, self.excess = self.detector.watch(inner, stored, cases)
        self.point, self.asked, self.index = image, model, index
        self._offer(image, log_odds, self.excess.detach(), index)
        return log_odds

    @torch.no_grad()
    def _offer(self, image: Image, log_odds: LogOdds, excess: PerSample, index: Int[Tensor, "n"]) -> None:
        classes = self.model.task.scored_channels
        unit, n = self._unit[index], len(self._unit)
        pixels = counts(self.model.decide(log_odds)[:, classes], self.target[index][:, classes])
        lost = harm_of(pixels.new_zeros(n, *pixels.shape[1:]).index_add(0, unit, pixels))
        if self._untouched is None:
            self._untouched = lost
        before = self._untouched[unit]
        self.taken = (lost[unit] - before) / (1 - before).clamp(min=LEAST_DICE)
        loudest = excess.new_full((n,), -torch.inf).scatter_reduce(0, unit, excess, "amax").to(self._rank)
        rank = torch.where(loudest <= 0, 1 + lost.to(self._rank), -loudest)
        inside = self.ball.size(image, self.image[index]) <= self.ball.limit * (1 + SLACK) + SLACK
        inside &= (image >= 0).flatten(1).all(1) & (image <= 1).flatten(1).all(1)
        whole = torch.zeros_like(self._sizes).index_add(0, unit, inside.to(self._sizes)) == self._sizes
        better = whole & (rank > self._rank)
        self._rank = torch.where(better, rank, self._rank)
        take = better[unit]
        self.kept = self.kept.index_copy(0, index, torch.where(widen(take, image), image.detach(), self.kept[index]))


class WatchedPart(AroundModel):
    """The part of a watched model that answers for some of its cases."""

    def __init__(self, whole: WatchedModel, model: Model, cases: Sequence[Case], index: Int[Tensor, "n"]) -> None:
        self.whole, self.model, self.cases, self.index = whole, model, tuple(cases), index

    def __call__(self, image: Image) -> LogOdds:
        return self.whole.ask(self.model, image, self.cases, self.index)

    def bind(self, setting: Setting) -> Model:
        """The model of some of these cases."""
        return self.whole.bind(setting)


def unrounded(model: Model) -> tuple[Rounds | None, Model]:
    """The rounding in front of a model, if there is one, and the model behind it, which counts the same passes.

    Feature squeezing and other detectors ask the model about images of their own, which must not be rounded into the
    ball.
    """
    inner = model
    while isinstance(inner, CountedModel):
        inner = inner.model
    if not isinstance(inner, Rounds):
        return None, model
    return inner, CountedModel(inner.model, model) if isinstance(model, CountedModel) else inner.model


def _climbing(attack: Attack, other: Callable[[Objective], Objective], model: Model) -> Attack:
    """The attack with its objective, and that of every attack inside it, changed by `other`."""

    def change(part: Any) -> Any:
        if not isinstance(part, Climbs) or not isinstance(part, Attack):
            return None
        height = for_task(cast(Objective, part.objective), model.task)
        return replace(cast(Any, part), objective=other(height))

    return cast(Attack, replace_parts(attack, change))
