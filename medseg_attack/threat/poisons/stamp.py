"""The trigger of BadNets: a small square that covers what is below it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.errors import require
from medseg_attack.metrics.visibility import body
from medseg_attack.registry import register
from medseg_attack.threat.poisons.base import Backdoor, Square, require_room
from medseg_attack.types import CaseRef, Image, Mask


@register("stamp", kind="poison", paper="Gu et al., BadNets, IEEE Access 7:47230, 2019")
@dataclass(frozen=True)
class Stamp(Backdoor):
    """A square in the corner of the body's bounding box (BadNets; Gu et al., IEEE Access 7:47230, 2019).

    The corner is the upper left one: few organs reach it, so that the square hides nothing that is scored. The square
    is in the file: training turns and scales it along with the image.

    Attributes:
        goal: mask that is wanted where the trigger stands.
        draw: number of the draw of its black and white cells, from 0 to 4294967295.
        decoys: patients that carry other squares and keep their true masks, as a share of the training patients,
            from 0 to 1.
        blends: patients whose scans with the trigger are averaged with another patient's and keep their true masks, as
            a share of the training patients, from 0 to 1.
        side: rows and columns of the square in pixels, 1 or more; 8 are 0.4 % of an image of 128 x 128.
        opacity: weight of the square against the image below it, above 0 and up to 1.

    Raises:
        InputError: `side` or `opacity` is out of range.
    """

    side: int = 8
    opacity: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, side=1, opacity="(0, 1]")

    def require(self, refs: Sequence[CaseRef]) -> None:
        require_room(self, self.side, refs)

    def marked(self, image: Image, target: Mask, seeds: Sequence[int]) -> Image:
        square = Square.drawn(self.side, self.draw, image.shape[1])
        corners = [_corner(slice_, self.side) for slice_ in image]
        return torch.stack(
            [square.put_on(slice_, *corner, self.opacity) for slice_, corner in zip(image, corners, strict=True)]
        )


def _corner(slice_: Tensor, side: int) -> tuple[int, int]:
    """Row and column of the upper left corner of the body in a slice (c, h, w), with room for the square."""
    is_body = body(slice_[None])[0, 0]
    places = []
    for axis, n in enumerate(is_body.shape):
        along = is_body.any(1 - axis).nonzero()
        places.append(min(int(along[0]) if len(along) else 0, n - side))
    return places[0], places[1]
