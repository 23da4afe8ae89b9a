"""Several detectors at once, calibrated as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medseg_attack.detectors.answers.uncertainty import Entropy
from medseg_attack.detectors.base import FOLDS, Detector, Training, as_double, folds, joined, parted
from medseg_attack.detectors.consistency.feature_squeezing import FeatureSqueezing
from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.types import Batch, Case, Image, LogOdds, Model, PerSample


@register("any_of", kind="detector", cost="those of its detectors")
@dataclass(frozen=True)
class AnyOf(Detector):
    """The most suspicious of several detectors, each on the scale of its scores on patients that it did not learn from.

    What is calibrated is the largest of them, so that the rate of false alarms is that of all together: no further
    correction is due. An attack that knows it must stay below the alarm of each.

    Attributes:
        detectors: two or more, such as (entropy, feature_squeezing); all learn from statistics of clean scans.

    Raises:
        InputError: there is none, one is no detector, or one learns from attacks or keeps images.
    """

    detectors: tuple[Any, ...] = (Entropy(), FeatureSqueezing())

    reason: ClassVar[str] = "one of several detectors is suspicious"

    def __post_init__(self) -> None:
        wrong = not self.detectors or not all(isinstance(each, Detector) for each in self.detectors)
        if wrong or any(each.learns_from != "clean" for each in self.detectors):
            raise InputError(
                "expected detectors that learn from statistics of clean scans for any_of, got "
                f"{', '.join(type(each).__name__ for each in self.detectors) or 'none'}; write such "
                "as any_of((entropy, feature_squeezing))"
            )

    def looks_at_scans(self) -> bool:
        return any(detector.looks_at_scans() for detector in self.detectors)

    def observe(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, Float[Tensor, "b d"]]:
        each = [detector.asked(model, image, cases) for detector in self.detectors]
        return each[0][0], joined([statistics for _, statistics in each])

    def training_statistics(self, model: Model, batch: Batch) -> Float[Tensor, "b d"]:
        return joined([detector.trained_on(model, batch) for detector in self.detectors])

    def learn(self, training: Training) -> dict[str, Tensor]:
        learned: dict[str, Tensor] = {}
        for n, (detector, part) in enumerate(zip(self.detectors, parted(training.clean), strict=True)):
            own = Training(part, training.cases)
            fitted, scores = detector.fitted(own), held_out_scores(detector, own)
            middle = scores.median()
            spread = (scores - middle).abs().median().clamp(min=1e-9 + 1e-6 * float(middle.abs()))
            learned |= {f"{n}.{name}": value for name, value in (fitted.learned or {}).items()}
            learned |= {f"{n}.own.middle": middle, f"{n}.own.spread": spread}
        return learned

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        each = []
        for n, (detector, part) in enumerate(zip(self.detectors, parted(statistics), strict=True)):
            middle, spread = self.known(f"{n}.own.middle", part), self.known(f"{n}.own.spread", part)
            score = detector.with_learned(_own(self.learned or {}, f"{n}.")).rated(part, cases)
            each.append((score - middle) / spread)
        return torch.stack(each, 1).amax(1)


def held_out_scores(detector: Detector, training: Training) -> PerSample:
    """The score of each training case by the detector that learned from other patients alone.

    One that learned from a case itself may know it by heart: densities are higher there, and their spread smaller than
    on any other patient. Of fewer than three patients there are no others to learn from.
    """
    fold, patients = folds(training.cases), len({case.group for case in training.cases})
    if patients < 3:
        return detector.fitted(training).rated(training.clean, training.cases)
    scores = torch.empty(len(fold), dtype=torch.float64)
    for n in range(min(FOLDS, patients)):
        held = fold == n
        others, own = (_cases_where(training, where) for where in (~held, held))
        scores[held] = as_double(detector.fitted(others).rated(own.clean, own.cases))
    return scores


def _cases_where(training: Training, where: Bool[Tensor, "b"]) -> Training:
    cases = tuple(case for case, is_in in zip(training.cases, where.tolist(), strict=True) if is_in)
    return Training(training.clean[where], cases)


def _own(learned: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in learned.items() if name.startswith(prefix)}
