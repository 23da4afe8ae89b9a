"""The multivariate Gaussian model of hidden features (Li & Zhu)."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from medseg_attack.detectors.base import Training
from medseg_attack.detectors.features import FeatureDetector
from medseg_attack.detectors.gaussian import fit_gaussian, squared_distance
from medseg_attack.registry import register
from medseg_attack.types import Case, PerSample


@register("mgm", kind="detector", paper="Li & Zhu, ISBI 2020", cost="1 forward")
@dataclass(frozen=True)
class MGM(FeatureDetector):
    """The squared Mahalanobis distance of pooled hidden features from those of clean scans (Li & Zhu, ISBI 2020).

    One Gaussian for all cases, with a Ledoit-Wolf covariance: there are seldom five cases for each feature.

    Attributes:
        layer: where features are from; see `medattack ls detectors`: deepest, pyramid, late or grid.
    """

    def learn(self, training: Training) -> dict[str, Tensor]:
        return fit_gaussian(training.clean)

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        return squared_distance(statistics, *(self.known(name, statistics) for name in ("mean", "scale", "factor")))
