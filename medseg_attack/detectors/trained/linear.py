"""A linear classifier of statistics, as the detectors that learned from attacks share it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.detectors.base import Training
from medseg_attack.detectors.gaussian import library, mean_and_scale
from medseg_attack.types import PerSample

NAMES = ("mean", "scale", "weights", "offset")  # of what `fit_linear` learns, in the order that `linear_score` takes


def negatives_and_positives(training: Training) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Statistics of clean and noisy cases, and of attacked ones."""
    assert training.noisy is not None  # a detector that learns from attacks gets both
    assert training.attacked is not None
    return torch.cat([training.clean, training.noisy]), training.attacked


def fit_linear(negative: Float[Tensor, "n d"], positive: Float[Tensor, "m d"]) -> dict[str, Tensor]:
    """Mean, scale, weights and offset of L2 logistic regression, both sides of the same weight."""
    x = torch.cat([negative, positive])
    mean, scale = mean_and_scale(x)
    labels = [0] * len(negative) + [1] * len(positive)
    z = ((x - mean) / scale).numpy()
    regression = library("linear_model").LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000)
    fitted = regression.fit(z, labels)
    weights, offset = torch.from_numpy(fitted.coef_[0].copy()), torch.from_numpy(fitted.intercept_.copy())
    return {"mean": mean, "scale": scale, "weights": weights, "offset": offset}


def linear_score(x: Float[Tensor, "b d"], facts: Sequence[Tensor]) -> PerSample:
    """The log-odds of being attacked."""
    mean, scale, weights, offset = facts
    return ((x - mean) / scale) @ weights + offset[0]
