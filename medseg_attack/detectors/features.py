"""Features of a network's hidden layers, pooled to a few numbers per case: what density detectors look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg_attack.detectors.base import Detector, as_double
from medseg_attack.errors import InputError
from medseg_attack.models.hidden_maps import Layers, hidden
from medseg_attack.types import Case, Image, LogOdds, Model

LAYERS = ("deepest", "pyramid", "late", "grid")  # that features are pooled from
GRID = 4  # cells of each axis of the layer "grid"


@dataclass(frozen=True)
class FeatureDetector(Detector):
    """A detector of pooled hidden features.

    Attributes:
        layer: where they are from: "deepest" (the map with the fewest pixels), "pyramid" (the last map of each size on
            the way there), "late" (the last map before the answer) or "grid" (the deepest one in 4 parts per axis).

    Raises:
        InputError: there is no such layer.
    """

    layer: str = "deepest"

    reason: ClassVar[str] = "hidden features unlike those of clean scans"

    def __post_init__(self) -> None:
        if self.layer not in LAYERS:
            raise InputError(f"expected layer to be one of {', '.join(LAYERS)}, got {self.layer!r}; write one of them")

    def observe(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, Float[Tensor, "b d"]]:
        log_odds, layers = hidden(model, image)
        return log_odds, torch.cat(pooled(layers, self.layer), 1)


def pooled(layers: Layers, layer: str) -> list[Float[Tensor, "b d"]]:
    """The mean of each channel of the maps that a layer's name stands for, one tensor per map."""
    maps = layers.pyramid if layer == "pyramid" else [layers.late if layer == "late" else layers.deepest]
    if layer == "grid":
        cells = [min(GRID, n) for n in maps[0].shape[2:]]
        pool: Any = nn.functional.adaptive_avg_pool2d if len(cells) == 2 else nn.functional.adaptive_avg_pool3d
        return [as_double(pool(maps[0], cells).flatten(1))]
    return [as_double(each.flatten(2).mean(2)) for each in maps]
