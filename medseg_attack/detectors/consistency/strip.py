"""STRIP: how little the answer moves when the scan is blended with clean ones, as a trigger's answer does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.detectors.base import Detector, Training, as_double
from medseg_attack.errors import require
from medseg_attack.numerics.fields import stretched
from medseg_attack.registry import register
from medseg_attack.threat.organs import organ_classes
from medseg_attack.threat.poisons.base import Backdoor, Poison
from medseg_attack.types import Batch, Case, Image, LogOdds, Model, PerSample


@register(
    "strip", kind="detector", paper="Gao et al., STRIP, ACSAC 2019, arXiv 1902.06531", cost="1 forward + 1 a copy"
)
@dataclass(frozen=True)
class Strip(Detector):
    """Soft Dice of the answer on the scan with those on blends with clean scans (STRIP; Gao et al., arXiv 1902.06531).

    An image with a trigger is too stable: the trigger decides whatever it is blended with. A poison with blends that
    keep their true masks answers it: write `stamp(blends=0.2)`.

    Attributes:
        copies: number of clean training scans that it is blended with, 1 or more.
        organ: name of the organ whose answers are compared; "" compares all.

    Raises:
        InputError: `copies` is below 1, or the task has no such organ.
    """

    copies: int = 8
    organ: str = ""

    learns_from: ClassVar[str] = "images"
    reason: ClassVar[str] = "an answer that does not change when the scan is blended with others"

    def __post_init__(self) -> None:
        require(self, copies=1)

    def is_known_to(self, poison: Poison) -> bool:
        return isinstance(poison, Backdoor) and poison.blends > 0

    def learn(self, training: Training) -> dict[str, Tensor]:
        cases = sorted(training.cases, key=lambda case: case.id)
        copies = min(self.copies, len(cases))
        chosen = [cases[n * len(cases) // copies] for n in range(copies)]
        grid = tuple(chosen[0].image.shape[1:])
        return {"images": torch.cat([stretched(case.image[None], grid) for case in chosen])}

    def training_statistics(self, model: Model, batch: Batch) -> Float[Tensor, "b d"]:
        organ_classes(model.task, self.organ, "strip")  # refuses another organ before anything is learned
        return torch.zeros(len(batch.image), 1, dtype=torch.float64)  # it learns images, and no numbers

    def observe(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, Float[Tensor, "b d"]]:
        classes = organ_classes(model.task, self.organ, "strip")
        log_odds = model(image)
        own = log_odds[:, classes].sigmoid().flatten(2)
        scores = []
        for clean in stretched(self.known("images", image), tuple(image.shape[2:])):
            other = model((image + clean) / 2)[:, classes].sigmoid().flatten(2)
            overlap = 2 * (own * other).sum(2) + 1
            scores.append(as_double(overlap / (own.square().sum(2) + other.square().sum(2) + 1)).mean(1))
        return log_odds, torch.stack(scores, 1)

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        return statistics.mean(1)
