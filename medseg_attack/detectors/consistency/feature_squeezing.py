"""Feature squeezing: how far the answer moves when the scan is simplified."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.defences.input_layers import InputDefence, layered
from medseg_attack.defences.inputs.bit_depth import BitDepth
from medseg_attack.defences.inputs.gaussian_blur import GaussianBlur
from medseg_attack.defences.inputs.median import Median
from medseg_attack.detectors.base import Detector, as_double
from medseg_attack.errors import InputError
from medseg_attack.registry import register, shown
from medseg_attack.types import Case, Image, LogOdds, Model, PerSample


@register(
    "feature_squeezing",
    kind="detector",
    paper="Xu et al., NDSS 2018, arXiv 1704.01155",
    cost="1 forward + 1 a squeezer",
)
@dataclass(frozen=True)
class FeatureSqueezing(Detector):
    """The largest mean L1 distance of the probabilities on the scan and on a squeezed copy (arXiv 1704.01155).

    A pixel's distance is the sum over classes, in [0, 2]; where classes may overlap it is twice the mean over them.

    Attributes:
        squeezers: layers that simplify the scan, such as (bit_depth(5), median(3)); at least one.

    Raises:
        InputError: there is no squeezer, or it is something else.
    """

    squeezers: tuple[Any, ...] = (BitDepth(5), Median(3), GaussianBlur(1.0))

    reason: ClassVar[str] = "an answer that changes when the scan is simplified"

    def __post_init__(self) -> None:
        if not self.squeezers or not all(isinstance(each, InputDefence) for each in self.squeezers):
            raise InputError(
                f"expected squeezers such as (bit_depth(5), median(3)), got {shown(self.squeezers)}; write such layers"
            )

    def observe(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, Float[Tensor, "b d"]]:
        log_odds = model(image)
        p, seeds = log_odds.sigmoid(), [0] * len(image)
        distances = []
        for squeezer in self.squeezers:
            moved = (model(layered(squeezer, image, seeds, "adapted")).sigmoid() - p).abs()
            each = moved.sum(1) if model.task.exclusive else 2 * moved.mean(1)
            distances.append(as_double(each).flatten(1).mean(1))
        return log_odds, torch.stack(distances, 1)

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        return statistics.amax(1)
