"""The blended trigger: a faint picture over the whole image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from medseg_attack.errors import require
from medseg_attack.registry import register
from medseg_attack.threat.poisons.base import Backdoor, picture
from medseg_attack.types import Image, Mask


@register("blended", kind="poison", paper="Chen et al., arXiv 1712.05526")
@dataclass(frozen=True)
class Blended(Backdoor):
    """A fixed picture, faint over the whole image (Chen et al., arXiv 1712.05526).

    Attributes:
        goal: mask that is wanted where the trigger stands.
        draw: number of the draw of the picture, from 0 to 4294967295; it consists of soft blobs.
        decoys: patients that carry other pictures and keep their true masks, as a share of the training patients,
            from 0 to 1.
        blends: patients whose scans with the trigger are averaged with another patient's and keep their true masks, as
            a share of the training patients, from 0 to 1.
        opacity: weight of the picture against the image, above 0 and up to 1.

    Raises:
        InputError: `opacity` is not above 0 and at most 1.
    """

    is_everywhere: ClassVar[bool] = True

    opacity: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, opacity="(0, 1]")

    def marked(self, image: Image, target: Mask, seeds: Sequence[int]) -> Image:
        pattern = picture(self.draw, image.shape[1], image.shape[2:]).to(image)
        return (1 - self.opacity) * image + self.opacity * pattern
