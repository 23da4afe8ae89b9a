"""An attack that gives an image the hidden features of another patient's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from medseg_attack.attacks.evading.watched import Evader, WatchedModel, unrounded
from medseg_attack.errors import InputError, require
from medseg_attack.models.hidden_maps import maps_of
from medseg_attack.numerics.fields import stretched
from medseg_attack.numerics.samples import TINY, widen
from medseg_attack.registry import register
from medseg_attack.threat.goals.stored import AnotherPatient
from medseg_attack.types import Image, LogOdds, Mask, Model, Objective, PerSample


@register(
    "feature_matching",
    kind="attack",
    cost="attack forward, attack backward",
    paper="Sabour et al., ICLR 2016, arXiv 1511.05122",
    reaches="all in eps",
    shown_by="feature_matching(attack=pgd(steps=8))",
)
@dataclass(frozen=True)
class FeatureMatching(Evader):
    """Hidden features moved to those of a guide, a clean image of another patient (Sabour et al., arXiv 1511.05122).

    Features that a clean image has raise no alarm in a detector of their density, and the mask that belongs to them is
    the guide's. What is climbed is minus the squared distance of the hidden maps from the guide's, as a share of that
    of the untouched image, mean over layers; the paper matches one layer, of a classifier, with L-BFGS. The attack
    within lends its ball, its steps, and its objective to choose the guide by: of some other patients' images, at the
    same relative height, it is the one whose own answer the objective is largest on. So it is far from the truth, or
    near the goal of a targeted attack. What is kept is the most harmful image without an alarm.

    Attributes:
        detector: one that was fitted and calibrated, such as saved('FILE'); None: the attack itself.
        guides: number of images that the guide is chosen from, 1 or more.

    Raises:
        InputError: `guides` is below 1, the detector was not fitted, the attack moves anatomy, or there is no other
            patient.
    """

    guides: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, guides=1)

    def climbs(self, watched: WatchedModel) -> Sequence[Callable[[Objective], Objective]]:
        return [partial(self._matching, watched=watched)]

    def _matching(self, height: Objective, watched: WatchedModel) -> Objective:
        model = unrounded(watched.model)[1]  # a guide is outside the ball
        with torch.no_grad():
            guide = self._guide(height, model, watched)
            guide_maps, untouched = (maps_of(model, image)[1] for image in (guide, watched.image))
        return Matching(watched, guide_maps, [_distance(*maps) for maps in zip(untouched, guide_maps, strict=True)])

    def _guide(self, height: Objective, model: Model, watched: WatchedModel) -> Image:
        """The image, for each sample, whose own answer is the highest."""
        best, highest = watched.image, torch.full_like(watched.taken, -torch.inf)
        for draw in range(self.guides):
            image = self._drawn(draw, watched.image)
            own = height(model(image), watched.target).to(highest)
            best = torch.where(widen(own > highest, image), image, best)
            highest = torch.maximum(highest, own)
        return best

    def _drawn(self, draw: int, image: Image) -> Image:
        """A clean image of another patient for each sample, on the grid of the images."""
        setting = self.setting
        if setting is None or setting.donors is None or len(setting.cases) != len(image):
            raise InputError(
                "feature_matching takes images of other patients of a data set, got none; run it through 'medattack "
                "attack' or 'medattack detect'"
            )
        cases = [AnotherPatient(draw).donor_of(case, setting.donors) for case in setting.cases]
        return torch.cat([stretched(case.image[None].to(image), tuple(image.shape[2:])) for case in cases])


@dataclass(frozen=True, eq=False)
class Matching:
    """Minus the distance of hidden maps from those of a guide, as a share of that of the untouched image.

    Attributes:
        guide_maps: of the guides, one for each layer.
        far: of each map, the squared distance of the untouched images' from it.
    """

    watched: WatchedModel
    guide_maps: Sequence[Tensor]
    far: Sequence[PerSample]

    def __call__(self, log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
        x, index = self.watched.point, self.watched.index
        if x is None:  # a smaller copy
            return 0 * log_odds.flatten(1).sum(1)
        maps = maps_of(self.watched.asked, x)[1]
        shares = [
            _distance(own, guide[index]) / far[index].clamp(min=TINY)
            for own, guide, far in zip(maps, self.guide_maps, self.far, strict=True)
        ]
        return -torch.stack(shares).mean(0).to(log_odds)


def _distance(maps: Tensor, others: Tensor) -> PerSample:
    return (maps - others).flatten(1).square().sum(1)
