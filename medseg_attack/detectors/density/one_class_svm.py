"""One-class support vector machines of hidden features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.detectors.base import Training
from medseg_attack.detectors.features import FeatureDetector
from medseg_attack.detectors.gaussian import library, mean_and_scale
from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.types import Case, PerSample


@register("one_class_svm", kind="detector", paper="Schoelkopf et al., Neural Computation 2001", cost="1 forward")
@dataclass(frozen=True)
class OneClassSVM(FeatureDetector):
    """Minus the decision function of a one-class SVM on pooled hidden features (Schoelkopf et al. 2001).

    The kernel is a Gaussian whose width is that of the scaled features: gamma = 1 / d. It has a gradient.

    Attributes:
        layer: where features are from: deepest, pyramid, late or grid.
        nu: share of training cases that may lie outside, above 0 and up to 1.

    Raises:
        InputError: `nu` is out of range.
    """

    nu: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.nu <= 1:
            raise InputError(f"expected nu above 0 and up to 1 for one_class_svm, got {self.nu}; write nu=0.05")

    def learn(self, training: Training) -> dict[str, Tensor]:
        mean, scale = mean_and_scale(training.clean)
        z = (training.clean - mean) / scale
        machine = library("svm").OneClassSVM(nu=self.nu, gamma=1 / z.shape[1]).fit(z.numpy())
        return {
            "mean": mean,
            "scale": scale,
            "points": torch.from_numpy(machine.support_vectors_),
            "weights": torch.from_numpy(machine.dual_coef_[0].copy()),
            "offset": torch.tensor(float(machine.intercept_[0]), dtype=torch.float64),
        }

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        z = (statistics - self.known("mean", statistics)) / self.known("scale", statistics)
        square = (z[:, None] - self.known("points", z)).square().sum(2)
        return -(-square / z.shape[1]).exp() @ self.known("weights", z) - self.known("offset", z)
