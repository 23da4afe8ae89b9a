"""Classifiers of hidden features that learned from an attack: DFeat, QFeat, the Mahalanobis ensemble, a probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.detectors.base import Training, joined, parted
from medseg_attack.detectors.features import FeatureDetector, pooled
from medseg_attack.detectors.gaussian import fit_gaussian, library, mean_and_scale, squared_distance
from medseg_attack.detectors.trained.linear import NAMES, fit_linear, linear_score, negatives_and_positives
from medseg_attack.errors import require
from medseg_attack.models.hidden_maps import hidden
from medseg_attack.numerics.samples import straight_through
from medseg_attack.registry import register
from medseg_attack.types import Attack, Case, Image, LogOdds, Model, PerSample

MA = "Ma et al., Pattern Recognition 2021, arXiv 1907.10456"
SLOPE = 10.0  # of the soft steps whose gradient stands in for that of levels


@dataclass(frozen=True)
class TrainedOnFeatures(FeatureDetector):
    """A detector of pooled hidden features that learned from an attack on training patients.

    Attributes:
        attack: the attack that it learned from.
    """

    attack: Attack = PGD(steps=10)

    learns_from: ClassVar[str] = "attacked"


@register("dfeat", kind="detector", paper=MA, cost="1 forward")
@dataclass(frozen=True)
class DFeat(TrainedOnFeatures):
    """Logistic regression on pooled deep features, clean and noisy against attacked (Ma et al., arXiv 1907.10456).

    It notices the attack that it learned from best: compare it on others.

    Attributes:
        layer: where features are from: deepest, pyramid, late or grid.
        attack: on training patients, from which it learns.
    """

    def learn(self, training: Training) -> dict[str, Tensor]:
        return fit_linear(*negatives_and_positives(training))

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        return linear_score(statistics, [self.known(name, statistics) for name in NAMES])


@register("linear_probe", kind="detector", paper=MA, cost="1 forward")
@dataclass(frozen=True)
class LinearProbe(DFeat):
    """Logistic regression on features of all layers: how far apart attacked scans are, for one who knows the attack.

    An upper bound on what hidden features tell, and no detector to deploy: it saw the attack that it is tried on, if
    `attack` is that of the run.

    Attributes:
        layer: where features are from: deepest, pyramid, late or grid.
        attack: on training patients, from which it learns.
    """

    layer: str = "pyramid"


@register("qfeat", kind="detector", paper=f"{MA}; Lu et al., ICCV 2017", cost="1 forward")
@dataclass(frozen=True)
class QFeat(TrainedOnFeatures):
    """A support vector machine on features that are quantised by clean quantiles (Ma et al., arXiv 1907.10456).

    Levels have no gradient: attacks climb through soft steps.

    Attributes:
        layer: where features are from: deepest, pyramid, late or grid.
        attack: on training patients, from which it learns.
        levels: of each feature, 2 or more.

    Raises:
        InputError: `levels` is below 2.
    """

    layer: str = "late"
    levels: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, levels=2)

    def learn(self, training: Training) -> dict[str, Tensor]:
        shares = torch.arange(1, self.levels, dtype=torch.float64) / self.levels
        steps = torch.quantile(training.clean, shares, dim=0)
        _, scale = mean_and_scale(training.clean)
        negative, positive = (_quantised(x, steps, scale) for x in negatives_and_positives(training))
        x, labels = torch.cat([negative, positive]), [0] * len(negative) + [1] * len(positive)
        gamma = 1 / (x.shape[1] * max(float(x.var(unbiased=False)), 1e-9))
        machine = library("svm").SVC(C=1.0, gamma=gamma, class_weight="balanced").fit(x.numpy(), labels)
        return {
            "steps": steps,
            "scale": scale,
            "points": torch.from_numpy(machine.support_vectors_),
            "weights": torch.from_numpy(machine.dual_coef_[0].copy()),
            "offset": torch.tensor(float(machine.intercept_[0]), dtype=torch.float64),
            "gamma": torch.tensor(gamma, dtype=torch.float64),
        }

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        codes = _quantised(statistics, self.known("steps", statistics), self.known("scale", statistics))
        square = (codes[:, None] - self.known("points", codes)).square().sum(2)
        kernel = (-self.known("gamma", codes) * square).exp()
        return kernel @ self.known("weights", codes) + self.known("offset", codes)


def _quantised(x: Float[Tensor, "b d"], steps: Float[Tensor, "l d"], scale: Float[Tensor, "d"]) -> Float[Tensor, "b d"]:
    """The number of steps below each feature, with the gradient of soft ones."""
    above = x[:, None] - steps
    return straight_through((above > 0).sum(1).to(x), (SLOPE * above / scale).sigmoid().sum(1))


@register("mahalanobis", kind="detector", paper="Lee et al., NeurIPS 2018, arXiv 1807.03888", cost="1 forward")
@dataclass(frozen=True)
class Mahalanobis(TrainedOnFeatures):
    """Logistic regression on the Mahalanobis distance of each layer (Lee et al., arXiv 1807.03888).

    One Gaussian for each layer, with a Ledoit-Wolf covariance; the step along the gradient that the paper makes first
    is left out. Its weights are those of the attack that it learned from.

    Attributes:
        layer: where features are from: pyramid is one distance for each size of maps.
        attack: on training patients, from which it learns.
    """

    layer: str = "pyramid"

    def observe(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, Float[Tensor, "b d"]]:
        log_odds, layers = hidden(model, image)
        parts = [*pooled(layers, self.layer), *([] if self.layer == "late" else pooled(layers, "late"))]
        return log_odds, joined(parts)

    def learn(self, training: Training) -> dict[str, Tensor]:
        learned: dict[str, Tensor] = {}
        for n, part in enumerate(parted(training.clean)):
            learned |= {f"{name}.{n}": value for name, value in fit_gaussian(part).items()}
        known = self.with_learned(learned)
        sides = [known._distances(x) for x in negatives_and_positives(training)]
        return learned | fit_linear(*sides)

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        return linear_score(self._distances(statistics), [self.known(name, statistics) for name in NAMES])

    def _distances(self, statistics: Float[Tensor, "b d"]) -> Float[Tensor, "b n"]:
        each = []
        for n, part in enumerate(parted(statistics)):
            facts = (self.known(f"{name}.{n}", part) for name in ("mean", "scale", "factor"))
            each.append((squared_distance(part, *facts) + 1e-9).sqrt())
        return torch.stack(each, 1)
