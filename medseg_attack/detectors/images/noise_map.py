"""The noise of a scan, beside that of clean ones (Immerkaer's estimate)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from medseg_attack.detectors.base import Detector, Training, as_double
from medseg_attack.numerics.noise import second_differences
from medseg_attack.registry import register
from medseg_attack.types import Case, Image, LogOdds, Model, PerSample

LEAST = 1e-6  # of a standard deviation: a scan without noise has no logarithm


@register("noise_map", kind="detector", paper="Immerkaer, CVIU 1996", cost="1 forward")
@dataclass(frozen=True)
class NoiseMap(Detector):
    """The distance of a slice's log noise from the median of clean ones: a noise detector (Immerkaer 1996).

    It cannot tell an attack from noise of the same size, so that the column "to noise" shows chance. It notices
    attackers who do not care. Pixels beside one that the window cuts off are left out.
    """

    reason: ClassVar[str] = "more or less noise than in clean scans"

    def observe(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, Float[Tensor, "b d"]]:
        return model(image), residual_sigma(as_double(image)).log()[:, None]

    def learn(self, training: Training) -> dict[str, Tensor]:
        return {"median": training.clean.median(0).values}

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        return (statistics - self.known("median", statistics)).abs()[:, 0]


def residual_sigma(image: Image) -> PerSample:
    """The standard deviation of each image's noise, by a filter that is blind to planes, in each slice.

    sqrt(pi / 2) / 6 times the mean of |x * N|, N = [1 -2 1; -2 4 -2; 1 -2 1], of pixels whose neighbours are above 0
    and below 1; of all where there are none.
    """
    x = image.transpose(1, 2).flatten(1, 2) if image.ndim == 5 else image  # slices and channels alike
    x = x.flatten(0, 1)[:, None]
    residual = second_differences(x).abs().view(len(image), -1)
    cut = functional.max_pool2d(((x <= 0) | (x >= 1)).to(x), 3, stride=1).view(len(image), -1) > 0
    inside = torch.where(cut.all(1, keepdim=True), True, ~cut)
    mean = (residual * inside).sum(1) / inside.sum(1)
    return math.sqrt(math.pi / 2) / 6 * mean.clamp(min=LEAST)
