"""Rotation consistency: the masks of a scan that was turned or mirrored, turned back (EVADE)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.detectors.base import Detector, as_double
from medseg_attack.metrics.overlap import dice
from medseg_attack.numerics.samples import straight_through
from medseg_attack.registry import register
from medseg_attack.types import Case, Image, LogOdds, Model, PerSample

POSES: tuple[tuple[int, bool], ...] = (
    (1, False),
    (2, False),
    (3, False),
    (0, True),
    (2, True),
)  # quarter turns, mirror


@register("rotation_consistency", kind="detector", paper="Shukla & Gupta, Expert Systems 2025", cost="6 forwards")
@dataclass(frozen=True)
class RotationConsistency(Detector):
    """One minus the mean Dice of the mask with those of turned and mirrored scans, turned back (EVADE 2025).

    Quarter turns in the plane of a slice and its two reflections, which are exact on the grid. A class that is in
    neither mask agrees. Attacks climb it by soft Dice.
    """

    reason: ClassVar[str] = "an answer that changes when the scan is turned"

    def observe(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, Float[Tensor, "b d"]]:
        log_odds = model(image)
        each = [_disagreement(model, log_odds, _back(model(_turned(image, *pose)), *pose)) for pose in POSES]
        return log_odds, torch.stack(each, 1)

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        return statistics.mean(1)


def _turned(x: Tensor, turns: int, mirror: bool) -> Tensor:
    x = x.flip(-1) if mirror else x
    return x.rot90(turns, (-2, -1))


def _back(x: Tensor, turns: int, mirror: bool) -> Tensor:
    x = x.rot90(-turns, (-2, -1))
    return x.flip(-1) if mirror else x


def _disagreement(model: Model, log_odds: LogOdds, other: LogOdds) -> PerSample:
    """One minus the mean Dice over reported classes, of masks; with the gradient of that of probabilities."""
    classes = model.task.scored_channels
    masks = [model.decide(each)[:, classes] for each in (log_odds, other)]
    hard = 1 - dice(masks[0], masks[1], empty=1.0, dtype=torch.float64).mean(1)
    p, q = (as_double(each[:, classes].sigmoid()).flatten(2) for each in (log_odds, other))
    soft = 1 - (2 * (p * q).sum(2) / (p.square().sum(2) + q.square().sum(2)).clamp(min=1e-9)).mean(1)
    return straight_through(hard, soft)
