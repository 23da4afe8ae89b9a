"""Several detectors at once, calibrated as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.detectors.answers.uncertainty import Entropy
from medseg_attack.detectors.base import Detector, Training, joined, parted
from medseg_attack.detectors.consistency.feature_squeezing import FeatureSqueezing
from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.types import Batch, Case, Image, LogOdds, Model, PerSample


@register("any_of", kind="detector", cost="those of its detectors")
@dataclass(frozen=True)
class AnyOf(Detector):
    """The most suspicious of several detectors, each on the scale of its scores on training patients.

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
            fitted = detector.fitted(Training(part, training.cases))
            scores = fitted.rated(part, training.cases)
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


def _own(learned: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in learned.items() if name.startswith(prefix)}
