"""Isolation forests of hidden features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.detectors.base import Training
from medseg_attack.detectors.features import FeatureDetector
from medseg_attack.detectors.gaussian import library, mean_and_scale
from medseg_attack.errors import require
from medseg_attack.numerics.samples import straight_through
from medseg_attack.registry import register
from medseg_attack.types import Case, PerSample

SEEDS, SAMPLES = 5, 256


@register("isolation_forest", kind="detector", paper="Liu et al., ICDM 2008", cost="1 forward")
@dataclass(frozen=True)
class IsolationForest(FeatureDetector):
    """The ease with which random cuts isolate pooled hidden features (Liu et al., ICDM 2008), mean of five forests.

    Trees have no gradient: attacks climb the squared distance from the mean in their place.

    Attributes:
        layer: where features are from: deepest, pyramid, late or grid.
        trees: of each forest, 1 or more.

    Raises:
        InputError: `trees` is below 1.
    """

    trees: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, trees=1)

    def learn(self, training: Training) -> dict[str, Tensor]:
        mean, scale = mean_and_scale(training.clean)
        x = training.clean.numpy()
        tables, n_nodes = [], []
        for seed in range(SEEDS):
            forest = library("ensemble").IsolationForest(
                n_estimators=self.trees, max_samples=min(SAMPLES, len(x)), random_state=seed
            )
            for estimator, features in zip(forest.fit(x).estimators_, forest.estimators_features_, strict=True):
                tree = estimator.tree_
                is_leaf = tree.children_left < 0
                cut = np.where(is_leaf, 0, np.asarray(features)[np.where(is_leaf, 0, tree.feature)])
                extra = [path_length(int(n)) for n in tree.n_node_samples]
                columns = (tree.children_left, tree.children_right, cut, tree.threshold, extra)
                tables.append(np.stack([np.asarray(column, np.float64) for column in columns], 1))
                n_nodes.append(len(tables[-1]))
        size = max(n_nodes)
        padded = np.stack([np.pad(table, ((0, size - len(table)), (0, 0))) for table in tables])
        samples = torch.tensor(min(SAMPLES, len(x)), dtype=torch.float64)
        return {"trees": torch.from_numpy(padded), "mean": mean, "scale": scale, "samples": samples}

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        depth = _depths(statistics.detach(), self.known("trees", statistics)).mean(1)
        value = 2 ** (-depth / path_length(int(self.known("samples", statistics))))
        z = (statistics - self.known("mean", statistics)) / self.known("scale", statistics)
        return straight_through(value, z.square().mean(1))


def path_length(n: int) -> float:
    """The mean depth of a search that fails in a binary tree of n points.

    >>> round(path_length(256), 4), path_length(2), path_length(1)
    (10.2448, 1.0, 0.0)
    """
    if n <= 2:
        return float(n == 2)
    return 2 * (math.log(n - 1) + 0.5772156649015329) - 2 * (n - 1) / n


def _depths(x: Float[Tensor, "b d"], trees: Float[Tensor, "t nodes 5"]) -> Float[Tensor, "b t"]:
    """The depth of the leaf of each row in each tree, and what its points would take further."""
    x = x.float().to(torch.float64)  # as scikit-learn's trees, whose cuts are between float32
    left, right, feature, threshold, extra = trees.unbind(2)
    tree = torch.arange(len(trees), device=x.device).expand(len(x), -1)
    node = torch.zeros_like(tree)
    depth = x.new_zeros(tree.shape)
    while True:
        is_leaf = left[tree, node] < 0
        if is_leaf.all():
            return depth + extra[tree, node]
        value = torch.gather(x, 1, feature[tree, node].long())
        child = torch.where(value <= threshold[tree, node], left[tree, node], right[tree, node]).long()
        node = torch.where(is_leaf, node, child)
        depth = depth + (~is_leaf).to(depth)
