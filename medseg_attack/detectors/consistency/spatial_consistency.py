"""Spatial consistency: overlapping parts of a scan, segmented alone, agree where they overlap (Xiao et al.)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.detectors.base import Detector, as_double
from medseg_attack.errors import require
from medseg_attack.metrics.overlap import iou
from medseg_attack.numerics.samples import straight_through
from medseg_attack.registry import register
from medseg_attack.types import Case, Image, LogOdds, Model, PerSample

Place: TypeAlias = tuple[int, ...]  # first pixel of a part along each axis


@register(
    "spatial_consistency", kind="detector", paper="Xiao et al., ECCV 2018, arXiv 1810.05162", cost="2 forwards a pair"
)
@dataclass(frozen=True)
class SpatialConsistency(Detector):
    """One minus the mean IoU of the masks of random parts of a scan where they overlap (Xiao et al., arXiv 1810.05162).

    Parts are half as wide as the scan along each axis and overlap by a quarter to three quarters of their side. Their
    places are drawn from the image's shape, so that a score can be computed again; an attacker may know them.

    Attributes:
        pairs: number of pairs of parts, 1 or more.

    Raises:
        InputError: `pairs` is below 1.
    """

    pairs: int = 50

    reason: ClassVar[str] = "parts of the scan whose answers disagree where they overlap"

    def __post_init__(self) -> None:
        require(self, pairs=1)

    def observe(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, Float[Tensor, "b d"]]:
        each = []
        for first, second in self._places(tuple(image.shape[2:])):
            answers = [model(_part(image, place)) for place in (first, second)]
            each.append(_disagreement(model, *_overlap(answers, first, second)))
        return model(image), torch.stack(each, 1)

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        return statistics.mean(1)

    def _places(self, grid: tuple[int, ...]) -> list[tuple[Place, Place]]:
        random = np.random.default_rng(crc32(f"{grid}".encode()))
        pairs = []
        for _ in range(self.pairs):
            first, second = [], []
            for n in grid:
                side = _side(n)
                apart = int(random.integers(max(1, side // 4), max(2, side * 3 // 4 + 1)))
                apart = min(apart, n - side)
                start = int(random.integers(0, n - side - apart + 1))
                ends = (start, start + apart)
                swap = bool(random.integers(2))
                first.append(ends[swap])
                second.append(ends[not swap])
            pairs.append((tuple(first), tuple(second)))
        return pairs


def _side(n: int) -> int:
    return max(1, (n + 1) // 2)


def _part(x: Tensor, place: Place) -> Tensor:
    for axis, start in enumerate(place, start=2):
        x = x.narrow(axis, start, _side(x.shape[axis]))
    return x


def _overlap(answers: Sequence[Tensor], first: Place, second: Place) -> tuple[Tensor, Tensor]:
    """The parts of two answers that lie on the same pixels."""
    own, other = answers
    for axis, (a, b) in enumerate(zip(first, second, strict=True), start=2):
        low, high = max(a, b), min(a, b) + own.shape[axis]
        own_start, other_start, length = low - a, low - b, high - low
        own, other = own.narrow(axis, own_start, length), other.narrow(axis, other_start, length)
    return own, other


def _disagreement(model: Model, own: LogOdds, other: LogOdds) -> PerSample:
    """One minus the mean IoU over reported classes, of masks; with the gradient of that of probabilities."""
    classes = model.task.scored_channels
    masks = [model.decide(each)[:, classes] for each in (own, other)]
    hard = 1 - iou(masks[0], masks[1], empty=1.0, dtype=torch.float64).mean(1)
    p, q = (as_double(each[:, classes].sigmoid()).flatten(2) for each in (own, other))
    hit = (p * q).sum(2)
    soft = 1 - (hit / (p.square().sum(2) + q.square().sum(2) - hit).clamp(min=1e-9)).mean(1)
    return straight_through(hard, soft)
