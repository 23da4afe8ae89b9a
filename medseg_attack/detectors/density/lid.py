"""The local intrinsic dimensionality of hidden features (Ma et al.)."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from medseg_attack.detectors.base import Training
from medseg_attack.detectors.features import FeatureDetector
from medseg_attack.detectors.gaussian import mean_and_scale
from medseg_attack.errors import require
from medseg_attack.registry import register
from medseg_attack.types import Case, PerSample

TINY = 1e-12  # of a distance: doubles would have a logarithm of 0


@register("lid", kind="detector", paper="Ma et al., ICLR 2018, arXiv 1801.02613", cost="1 forward")
@dataclass(frozen=True)
class LID(FeatureDetector):
    """The local intrinsic dimensionality of pooled hidden features among clean ones (Ma et al., arXiv 1801.02613).

    Neighbours are training cases. The released code looks for them in a batch that holds the clean original of each
    attacked case, which no hospital has.

    Attributes:
        layer: where features are from: deepest, pyramid, late or grid.
        neighbours: number of neighbours, 2 or more; at most half of the training cases are taken.

    Raises:
        InputError: `neighbours` is below 2.
    """

    neighbours: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, neighbours=2)

    def learn(self, training: Training) -> dict[str, Tensor]:
        mean, scale = mean_and_scale(training.clean)
        return {"mean": mean, "scale": scale, "points": (training.clean - mean) / scale}

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        z = (statistics - self.known("mean", statistics)) / self.known("scale", statistics)
        points = self.known("points", z)
        k = max(2, min(self.neighbours, len(points) // 2))
        square = (z[:, None] - points).square().sum(2)
        return dimensionality((square + TINY**2).sqrt().topk(k, largest=False).values)


def dimensionality(distances: Float[Tensor, "b k"]) -> PerSample:
    """The maximum-likelihood estimate from distances to the nearest neighbours, in order.

    >>> import torch
    >>> round(float(dimensionality(torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64))), 6)
    1.689815
    """
    ratios = (distances / distances[:, -1:].clamp(min=TINY)).clamp(min=TINY).log()
    return -1 / ratios.mean(1).clamp(max=-TINY)
