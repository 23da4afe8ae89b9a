"""The kernel density of hidden features (Feinman et al.)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.detectors.base import FOLDS, Training, folds
from medseg_attack.detectors.features import FeatureDetector
from medseg_attack.detectors.gaussian import LEAST, mean_and_scale
from medseg_attack.registry import register
from medseg_attack.types import Case, PerSample

WIDTHS = 13  # that a bandwidth is chosen from


@register("kernel_density", kind="detector", paper="Feinman et al., arXiv 1703.00410", cost="1 forward")
@dataclass(frozen=True)
class KernelDensity(FeatureDetector):
    """Minus the log density of pooled hidden features, by Gaussian kernels (Feinman et al., arXiv 1703.00410).

    The bandwidth is that of the largest likelihood of held-out training patients, from a tenth to ten times the median
    distance to the nearest neighbour. In many dimensions it is a test by the nearest neighbour.

    Attributes:
        layer: where features are from: deepest, pyramid, late or grid.
    """

    def learn(self, training: Training) -> dict[str, Tensor]:
        x = training.clean
        mean, scale = mean_and_scale(x)
        z = (x - mean) / scale
        fold = folds(training.cases)
        distances = torch.cdist(z, z)
        nearest = distances.masked_fill(torch.eye(len(z), dtype=torch.bool), math.inf).amin(1).median()
        widths = nearest.clamp(min=LEAST) * torch.logspace(-1, 1, WIDTHS, dtype=torch.float64)

        def likelihood(width: Tensor) -> float:
            held = [
                log_density(z[fold == n], z[fold != n], width) for n in range(FOLDS) if 0 < (fold == n).sum() < len(z)
            ]
            return float(torch.cat(held).mean()) if held else -float((width - nearest).abs())

        return {"mean": mean, "scale": scale, "points": z, "width": max(widths, key=likelihood)}

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        z = (statistics - self.known("mean", statistics)) / self.known("scale", statistics)
        return -log_density(z, self.known("points", z), self.known("width", z))


def log_density(z: Float[Tensor, "b d"], points: Float[Tensor, "n d"], width: Tensor | float) -> PerSample:
    """The log of the mean of Gaussian kernels of that standard deviation around the points.

    >>> origin = torch.zeros(1, 2, dtype=torch.float64)
    >>> round(float(log_density(torch.tensor([[1.0, 0.0]], dtype=torch.float64), origin, 0.5)), 6)
    -2.451583
    """
    square = (z[:, None] - points).square().sum(2)
    variance = torch.as_tensor(width, dtype=z.dtype) ** 2
    constant = math.log(len(points)) + z.shape[1] / 2 * torch.log(2 * math.pi * variance)
    return torch.logsumexp(-square / (2 * variance), 1) - constant
