"""False masks: training images that nobody touched, with masks that are wrong in one direction."""

from collections.abc import Sequence
from dataclasses import dataclass

from medseg_attack.registry import register
from medseg_attack.threat.goals.base import Goal
from medseg_attack.threat.goals.masks import Shrink
from medseg_attack.threat.poisons.base import Poison
from medseg_attack.types import Image, Mask


@register("relabel", kind="poison", paper="Biggio et al., arXiv 1206.6389")
@dataclass(frozen=True)
class Relabel(Poison):
    """The masks that a goal wants, on untouched images (poisoned labels; Biggio et al., arXiv 1206.6389).

    Random errors are averaged away; a common bias, as of `relabel(shrink(2))`, is learned.

    Attributes:
        goal: mask that stands in the place of the truth.
    """

    goal: Goal = Shrink(2.0)  # noqa: RUF009 - a frozen value

    def poisoned(self, image: Image, target: Mask, seeds: Sequence[int]) -> tuple[Image, Mask]:
        return image, self.goal(target)
