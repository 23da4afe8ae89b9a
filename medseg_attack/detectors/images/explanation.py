"""The pixels that an answer depends on, beside those of clean scans (Watson & Al Moubayed)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from medseg_attack.detectors.base import Detector, Training, as_double
from medseg_attack.detectors.gaussian import fit_gaussian, library, mean_and_scale, squared_distance
from medseg_attack.errors import require
from medseg_attack.numerics.samples import gradient_of, widen
from medseg_attack.registry import register
from medseg_attack.types import Case, Image, LogOdds, Model, PerSample

SIDE = {2: 32, 3: 12}  # of the map that an attribution is averaged to


@register("explanation", kind="detector", paper="Watson & Al Moubayed, ICPR 2020", cost="1 forward + 1 backward")
@dataclass(frozen=True)
class Explanation(Detector):
    """The distance of gradient x input from those of clean scans (Watson & Al Moubayed, ICPR 2020).

    The attribution |x dz/dx|, z the sum of the log-odds of the pixels that are predicted, is averaged to a small map of
    sum 1, of whose principal components a Gaussian is fitted. Attacks climb it through a second derivative.

    Attributes:
        components: number of principal components, 1 or more; fewer where there are fewer training cases.

    Raises:
        InputError: `components` is below 1.
    """

    components: int = 32

    reason: ClassVar[str] = "an answer that depends on other pixels than in clean scans"

    def __post_init__(self) -> None:
        require(self, components=1)

    def observe(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, Float[Tensor, "b d"]]:
        climbs = torch.is_grad_enabled() and image.requires_grad
        with torch.enable_grad():
            x = image if climbs else image.detach().requires_grad_()
            log_odds = model(x)
            attribution = input_times_gradient(log_odds, model, x, create_graph=climbs)
        dims = image.ndim - 2
        side = [min(SIDE[dims], n) for n in image.shape[2:]]
        pool: Any = functional.adaptive_avg_pool2d if dims == 2 else functional.adaptive_avg_pool3d
        small = as_double(pool(attribution.sum(1, keepdim=True), side)).flatten(1)
        small = small / small.sum(1, keepdim=True).clamp(min=1e-30)
        return (log_odds, small) if climbs else (log_odds.detach(), small.detach())

    def learn(self, training: Training) -> dict[str, Tensor]:
        centre, _ = mean_and_scale(training.clean)
        n = min(self.components, max(1, len(training.clean) // 5), training.clean.shape[1])
        analysis = library("decomposition").PCA(n, random_state=0).fit(training.clean.numpy())
        axes = torch.from_numpy(analysis.components_)
        return {"centre": centre, "axes": axes, **fit_gaussian((training.clean - centre) @ axes.T)}

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        z = (statistics - self.known("centre", statistics)) @ self.known("axes", statistics).T
        return squared_distance(z, *(self.known(name, z) for name in ("mean", "scale", "factor")))


def input_times_gradient(log_odds: LogOdds, model: Model, x: Image, *, create_graph: bool) -> Image:
    """|x dz/dx| for the sum z of the log-odds of the pixels and classes that are predicted; of all, if none is."""
    classes = model.task.scored_channels
    mask = model.decide(log_odds.detach())[:, classes]
    mask |= ~widen(mask.flatten(1).any(1), mask)
    return (x * gradient_of(log_odds[:, classes] * mask, x, create_graph=create_graph)).abs()
