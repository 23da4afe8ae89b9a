"""Spectral signatures: how far each item lies along the direction in which all of them differ most. No torch."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def spectral_scores(features: Array) -> Array:
    """The squared projection of each item on the top right singular vector (Tran et al., arXiv 1811.00636).

    A share of poisoned items is a second cluster, and the direction to it is where the variance is largest.

    Args:
        features: (items, numbers).

    >>> spectral_scores(np.array([[0.0, 0.0], [0.0, 0.1], [3.0, 0.0]])).round(2).tolist()
    [1.0, 1.0, 4.0]
    """
    centred = features - features.mean(0)
    *_, directions = np.linalg.svd(centred, full_matrices=False)
    scores: Array = (centred @ directions[0]) ** 2
    return scores
