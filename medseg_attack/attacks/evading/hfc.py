"""An attack that keeps hidden features where those of clean scans are (HFC)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.evading.evading import Evading, Penalised
from medseg_attack.attacks.evading.watched import WatchedModel
from medseg_attack.errors import InputError
from medseg_attack.models.hidden_maps import maps_of
from medseg_attack.registry import register
from medseg_attack.types import Batch, Fittable, Image, LogOdds, Mask, Model, Objective, PerSample

SHRINKAGE = 0.1  # of a covariance of scaled features towards the identity: there are seldom five cases for each
LEAST = 1e-6  # of a standard deviation


@register(
    "hfc",
    kind="attack",
    cost="attack forward, attack backward",
    paper="Yao et al., MICCAI 2021",
    reaches="all in eps",
    shown_by="hfc(attack=pgd(steps=8))",
)
@dataclass(frozen=True)
class HFC(Evading):
    """Hierarchical feature constraint: `evading` whose hidden features also stay near those of clean scans.

    Of each hidden layer the mean of every channel is one number. A Gaussian of these is fitted to clean training scans,
    and the mean over layers of the squared distance from it, for each number, is taken off the objective beside the
    detector's score (Yao et al., MICCAI 2021). So it hides from detectors of features that it was not made for, too.

    Attributes:
        detector: one that was fitted and calibrated, such as saved('FILE'); None: the attack itself.
        weight: of the score's excess and of the distance, beside the objective; of several, each is climbed. None: 0.1,
            1 and 10.
        learned: the Gaussian of each layer; None before it is fitted.

    Raises:
        InputError: a weight is below 0, the detector was not fitted, or the attack moves anatomy or must be fitted.
    """

    learned: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.attack, Fittable):
            raise InputError("expected an attack that needs no fit for hfc, got one that does; take evading")

    def fit(self, model: Model, batches: Sequence[Batch], seed: int) -> Mapping[str, Tensor]:
        """Mean, scale and Cholesky factor of the pooled features of each layer."""
        with torch.no_grad():
            each = [pooled(model, batch.image) for batch in batches]
        learned: dict[str, Tensor] = {}
        for layer, parts in enumerate(zip(*each, strict=True)):
            x = torch.cat(parts)
            mean, scale = x.mean(0), x.std(0, correction=0).clamp(min=LEAST)
            z = (x - mean) / scale
            identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
            covariance = (1 - SHRINKAGE) * z.T @ z / len(z) + SHRINKAGE * identity
            of_layer = {"mean": mean, "scale": scale, "factor": torch.linalg.cholesky(covariance)}
            learned |= {f"{layer}.{name}": value.contiguous() for name, value in of_layer.items()}
        return learned

    def with_learned(self, learned: Mapping[str, Tensor]) -> "HFC":
        return replace(self, learned=dict(learned))

    def climbs(self, watched: WatchedModel) -> Sequence[Callable[[Objective], Objective]]:
        if self.learned is None:
            raise InputError("expected hfc to be fitted, got one that is not; run it by medattack attack or detect")
        return [partial(self._constrained, watched=watched, weight=weight) for weight in self.weights]

    def _constrained(self, height: Objective, watched: WatchedModel, weight: float) -> Objective:
        return Penalised(Constrained(height, watched, weight, self.learned or {}), watched, weight)


@dataclass(frozen=True, eq=False)
class Constrained:
    """An objective less the distance of hidden features from those of clean scans."""

    height: Objective
    watched: WatchedModel
    weight: float
    learned: Mapping[str, Tensor]

    def __call__(self, log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
        height, x = self.height(log_odds, target, progress), self.watched.point
        if x is None or len(x) != len(height):
            return height
        layers = pooled(self.watched.asked, x)
        distances = [self._distance(layer, features) for layer, features in enumerate(layers)]
        return height - self.weight * torch.stack(distances).mean(0).to(height)

    def _distance(self, layer: int, features: Float[Tensor, "b d"]) -> PerSample:
        mean, scale, factor = (self.learned[f"{layer}.{name}"].to(features) for name in ("mean", "scale", "factor"))
        solved: Tensor = torch.linalg.solve_triangular(factor, ((features - mean) / scale).T, upper=False)
        return solved.square().mean(0)


def pooled(model: Model, image: Image) -> list[Float[Tensor, "b d"]]:
    """The mean of every channel of each hidden map."""
    return [each.flatten(2).mean(2).to(torch.float64) for each in maps_of(model, image)[1]]
