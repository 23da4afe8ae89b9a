"""The images that are kept of a batch where several of them, the slices of a volume, get one score together."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from medseg_attack.metrics.harm import harm_of, summed
from medseg_attack.metrics.overlap import counts
from medseg_attack.numerics.samples import widen
from medseg_attack.types import Adversarial, Ball, Case, Image, Mask, PerSample, Task

UNITS = ("slice", "volume")  # what has one Dice


def units(unit: str, cases: Sequence[Case], image: Image) -> Int[Tensor, "b"]:
    """The number of each sample's unit: the same for slices of one volume, if those are scored together.

    Args:
        cases: the samples; () where they are not known: each is a unit then.
    """
    if unit == "slice" or len(cases) != len(image):
        return torch.arange(len(image), device=image.device)
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(case.volume, len(numbers)) for case in cases], device=image.device)


class Kept:
    """The most harmful images of a batch so far: a unit's harm is that of the pixel counts of its slices together.

    An image takes the place of the one before where the harm of its unit grows, all other slices being what they are.
    So no unit's harm ever falls.

    Attributes:
        image: what is kept; at first the images that it was made of.
        unit: number of each sample's unit.
    """

    def __init__(self, task: Task, image: Image, pred: Mask, target: Mask, unit: Int[Tensor, "b"]) -> None:
        self.classes, self.image, self.target, self.unit = task.scored_channels, image.detach(), target, unit
        self._pixels = self._counts(pred, target)

    @property
    def harm(self) -> PerSample:
        """The harm of each sample's unit."""
        return harm_of(summed(self._pixels, self.unit))[self.unit]

    @property
    def own_harm(self) -> PerSample:
        """The harm of each sample by itself."""
        return harm_of(self._pixels)

    def offer(self, x: Image, pred: Mask, index: Int[Tensor, "n"]) -> None:
        """Keeps those of the images `x` that are worse than what is kept.

        Args:
            pred: predictions on `x`.
            index: places of `x` in the batch; whole units.
        """
        kept, unit, before = self._pixels[index], self.unit[index], self.harm[index]
        pixels = self._counts(pred, self.target[index])
        exchanged = summed(self._pixels, self.unit)[unit] - kept + pixels  # of the unit, with this slice alone new
        take = harm_of(exchanged) > before
        new = self._pixels.index_copy(0, index, torch.where(widen(take, pixels), pixels, kept))
        take &= harm_of(summed(new, self.unit))[unit] > before  # slices that each help may not help together
        self._pixels = self._pixels.index_copy(0, index, torch.where(widen(take, pixels), pixels, kept))
        self.image = self.image.index_copy(0, index, torch.where(widen(take, x), x.detach(), self.image[index]))

    def result(self, ball: Ball, image: Image) -> Adversarial:
        """The images that are kept, each with its own harm and the size of its change from `image`."""
        return Adversarial(self.image, self.own_harm.to(image), ball.size(self.image, image))

    def _counts(self, pred: Mask, target: Mask) -> Int[Tensor, "b scored 3"]:
        return counts(pred[:, self.classes], target[:, self.classes])
