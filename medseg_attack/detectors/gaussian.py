"""One Gaussian of clean statistics: its fit with a shrunk covariance, and the distance from it."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.types import PerSample

LEAST = 1e-6  # of a standard deviation


def mean_and_scale(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
    """Mean and standard deviation of each column.

    Raises:
        InputError: there are fewer than 2 rows.
    """
    if len(x) < 2:
        raise InputError(f"expected 2 or more cases to fit a detector to, got {len(x)}; prepare more patients")
    return x.mean(0), x.std(0).clamp(min=LEAST)


def fit_gaussian(x: Float[Tensor, "n d"]) -> dict[str, Tensor]:
    """Mean, scale and Cholesky factor of the Ledoit-Wolf covariance of the scaled numbers.

    Raises:
        InputError: there are fewer than 2 rows.
    """
    mean, scale = mean_and_scale(x)
    z = (x - mean) / scale
    covariance = torch.from_numpy(library("covariance").LedoitWolf(assume_centered=True).fit(np.asarray(z)).covariance_)
    jitter = LEAST * torch.eye(len(covariance), dtype=torch.float64)
    return {"mean": mean, "scale": scale, "factor": torch.linalg.cholesky(covariance + jitter)}


def squared_distance(
    x: Float[Tensor, "b d"], mean: Float[Tensor, "d"], scale: Float[Tensor, "d"], factor: Float[Tensor, "d d"]
) -> PerSample:
    """The squared Mahalanobis distance of each row; a triangular system is solved, nothing is inverted.

    >>> one, two = torch.ones(2), torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # covariance diag(4, 1)
    >>> squared_distance(torch.tensor([[2.0, 1.0]]), 0 * one, one, two).tolist()
    [2.0]
    """
    z = ((x - mean) / scale).T
    solved: Tensor = torch.linalg.solve_triangular(factor, z, upper=False)
    return solved.square().sum(0)


def library(module: str) -> Any:
    """A module of scikit-learn.

    Raises:
        InputError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise InputError(
            "expected scikit-learn to fit detectors with, got none; install it: pip install 'medseg-attack[detect]'"
        ) from error
