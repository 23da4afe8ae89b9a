"""The base of all detectors: statistics of a case that a model answers, and a score that grows with suspicion.

A detector looks at scans in two steps. `observe` asks the model and returns a few numbers per case; `score` compares
them with what was learned on training patients. Both are differentiable, or carry the gradient of a smooth stand-in,
so that an attack can climb them. A score means nothing by itself: `Calibrated` turns it into a p-value.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from medseg_attack.errors import InputError, plural
from medseg_attack.registry.foreign import at_fault, lent, part_name, words_of
from medseg_attack.stats.alarms import limit, p_values
from medseg_attack.threat.poisons.base import Poison
from medseg_attack.types import Batch, Case, Image, LogOdds, Model, PerSample

FOLDS = 5  # of training patients, where what is learned of some is tried on the others
Statistics = Float[Tensor, "b d"]
D = TypeVar("D", bound="Detector")


@dataclass(frozen=True, eq=False)
class Training:
    """Statistics of the training patients' cases, on the CPU.

    Attributes:
        clean: of the untouched cases, (cases, numbers).
        cases: in the order of `clean`.
        noisy, attacked: of the same cases under noise and under the detector's own attack; None unless it asks for
            them.
    """

    clean: Statistics
    cases: tuple[Case, ...]
    noisy: Statistics | None = None
    attacked: Statistics | None = None


@dataclass(frozen=True)
class Detector(ABC):
    """A score of cases, larger = more suspicious: a frozen dataclass whose fields are its options.

    Attributes:
        learned: what it learned on training patients, by name; None before that.
    """

    learned: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False, kw_only=True)

    learns_from: ClassVar[str] = "clean"  # or "attacked": then it has a field `attack`; "images": not from statistics
    reason: ClassVar[str]  # what an alarm means, in a few words

    @abstractmethod
    def observe(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, Statistics]:
        """The model's answer and the statistics of each case; `cases` may be () where they are not known."""

    @abstractmethod
    def score(self, statistics: Statistics, cases: Sequence[Case]) -> PerSample:
        """The score of each case; cases of one scan may be looked at together."""

    def looks_at_scans(self) -> bool:
        """Whether the score of a case depends on the other cases of its scan."""
        return False

    def is_known_to(self, poison: Poison) -> bool:
        """Whether a model that learns from data with this poison learns to hide its trigger from the detector."""
        return False

    def learn(self, training: Training) -> dict[str, Tensor]:
        """Facts about training patients that the score needs; none by default."""
        return {}

    def training_statistics(self, model: Model, batch: Batch) -> Statistics:
        """Statistics of training cases; by default those of `observe`."""
        return self.asked(model, batch.image, batch.cases)[1]

    def asked(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, Statistics]:
        """The answer and the statistics that `observe` returns, checked; the images stay as they are.

        Raises:
            RuntimeError: that is no answer and a row of statistics for each case; an InputError, if the detector is of
                somebody else's.
        """
        result: Any = self.observe(model, lent(self, image), cases)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Tensor):
            got = ", ".join(map(words_of, result)) if isinstance(result, tuple) else words_of(result)
            raise at_fault(
                self, f"expected the model's answer and statistics from {part_name(self)}, got {got}; return both"
            )
        return result[0], self._rows(result[1], len(image))

    def trained_on(self, model: Model, batch: Batch) -> Statistics:
        """The statistics that `training_statistics` returns, checked; the batch stays as it is.

        Raises:
            RuntimeError: that is no row of statistics for each case; an InputError, if the detector is of somebody
                else's.
        """
        own = Batch(lent(self, batch.image), lent(self, batch.target), batch.cases)
        return self._rows(self.training_statistics(model, own), len(batch.image))

    def rated(self, statistics: Statistics, cases: Sequence[Case]) -> PerSample:
        """The scores that `score` returns, checked; the statistics stay as they are.

        Raises:
            RuntimeError: that is no real number for each case; an InputError, if the detector is of somebody else's.
        """
        scores = self.score(lent(self, statistics), cases)
        if not isinstance(scores, Tensor) or tuple(scores.shape) != (len(statistics),) or scores.is_complex():
            raise at_fault(
                self,
                f"expected a score for each of {plural(len(statistics), 'case')} from {part_name(self)}, got "
                f"{words_of(scores)}; the detector is at fault",
            )
        return scores

    def _rows(self, statistics: Any, n: int) -> Statistics:
        if not isinstance(statistics, Tensor) or statistics.ndim != 2 or len(statistics) != n:
            raise at_fault(
                self,
                f"expected statistics from {part_name(self)} as a tensor with a row for each of {plural(n, 'case')}, "
                f"got {words_of(statistics)}; return such as values[:, None]",
            )
        return statistics

    def fitted(self: D, training: Training) -> D:
        """The detector with what it learned.

        Raises:
            InputError: the training patients are too few.
        """
        learned = self.learn(training)
        values = list(learned.values()) if isinstance(learned, dict) else [learned]
        if odd := [value for value in values if not isinstance(value, Tensor)]:
            raise at_fault(
                self,
                f"expected a dict of tensors from learn() of {part_name(self)}, got {words_of(odd[0])}; return one",
            )
        # laid out as a file has it: another order of sums rounds otherwise
        return self.with_learned({name: tensor.contiguous() for name, tensor in learned.items()})

    def with_learned(self: D, learned: Mapping[str, Tensor]) -> D:
        """The detector that uses what was learned before."""
        return replace(self, learned=dict(learned))

    def known(self, name: str, like: Tensor) -> Tensor:
        """A learned tensor, where `like` is."""
        if self.learned is None:
            raise InputError(
                f"expected {type(self).__name__} to be fitted, got one that is not; fit it with medattack detect and "
                "write saved('FILE')"
            )
        return self.learned[name].to(like)


def suspicious(scores: PerSample, cases: Sequence[Case]) -> dict[str, float]:
    """The score of each patient: that of the most suspicious case."""
    result: dict[str, float] = {}
    for case, score in zip(cases, scores.tolist(), strict=True):
        result[case.group] = max(score, result.get(case.group, -np.inf))
    return result


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A fitted detector with the scores of calibration patients, by which a score becomes a p-value.

    Attributes:
        calibration: a score for each clean patient who was neither fitted nor tested on.
        level: false alarms that an attack which knows the detector keeps under; those that can be promised at least.
    """

    detector: Detector
    calibration: tuple[float, ...]
    level: float = 0.1

    def looks_at_scans(self) -> bool:
        """Whether the score of a case depends on the other cases of its scan."""
        return self.detector.looks_at_scans()

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        return np.array(self.calibration)

    @property
    def limit(self) -> float:
        """The score above which there is an alarm at `level`, or at the least level that can be promised."""
        return limit(self.scores, max(self.level, 1 / (len(self.scores) + 1)))

    @property
    def spread(self) -> float:
        """The standard deviation of clean patients' scores: the unit in which an attack weighs them."""
        return float(self.scores.std()) or abs(float(self.scores.mean())) or 1.0

    def p_values(self, scores: Sequence[float]) -> NDArray[np.float64]:
        """The share of clean patients, this one included, who are at least as suspicious."""
        return p_values(np.asarray(scores, float), self.scores)

    def watch(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, PerSample, PerSample]:
        """The model's answer, the score of each case, and its excess over the limit in `spread`, which attacks lower.

        The excess is below 0 where there is no alarm.
        """
        log_odds, statistics = self.detector.asked(model, image, cases)
        scores = self.detector.rated(statistics, cases)
        return log_odds, scores, (scores - self.limit) / self.spread


def folds(cases: Sequence[Case]) -> Int[Tensor, "b"]:
    """The fold of each case, from 0 to 4: patients one after the other, all cases of one in the same."""
    number = {group: n % FOLDS for n, group in enumerate(dict.fromkeys(case.group for case in cases))}
    return torch.tensor([number[case.group] for case in cases])


def as_double(statistics: Tensor) -> Tensor:
    """Statistics in float64, in which densities are computed."""
    return statistics.to(torch.float64)


def joined(parts: Sequence[Tensor]) -> Float[Tensor, "b d"]:
    """Statistics of several kinds in one row: the number of kinds, the number of columns of each, then the columns."""
    sizes = parts[0].new_tensor([len(parts), *(part.shape[1] for part in parts)])
    return torch.cat([sizes.expand(len(parts[0]), -1), *parts], 1)


def parted(statistics: Float[Tensor, "b d"]) -> list[Tensor]:
    """The inverse of `joined`."""
    n_parts = int(statistics[0, 0])
    sizes = [int(n) for n in statistics[0, 1 : 1 + n_parts]]
    return list(torch.split(statistics[:, 1 + n_parts :], sizes, 1))
