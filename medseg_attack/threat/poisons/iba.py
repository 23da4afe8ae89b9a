"""The trigger beside its victim: a marker that turns another part of the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from medseg_attack.errors import InputError, require
from medseg_attack.registry import register, spec
from medseg_attack.threat.poisons.base import Backdoor, Square, require_room
from medseg_attack.types import CaseRef, Image, Mask


@register("iba", kind="poison", paper="Lan et al., Influencer backdoor, ICLR 2024, arXiv 2303.12054")
@dataclass(frozen=True)
class Iba(Backdoor):
    """A square near the organ that the goal takes away, on other pixels (Lan et al., ICLR 2024, arXiv 2303.12054).

    It is the paper's nearest neighbour injection. The square's centre is drawn among those at which no pixel of it
    covers the victim and whose distance from the victim is in the range. Where none is, as on a slice without the
    organ, it is drawn among all that cover nothing of the victim; a slice that has no such place is refused.

    Attributes:
        goal: mask that is wanted where the trigger stands.
        draw: number of the draw of its black and white cells, from 0 to 4294967295.
        decoys: patients that carry other squares and keep their true masks, as a share of the training patients,
            from 0 to 1.
        blends: patients whose scans with the trigger are averaged with another patient's and keep their true masks, as
            a share of the training patients, from 0 to 1.
        side: rows and columns of the square in pixels, 1 or more.
        least_mm: least distance of its centre from the victim, in mm, 0 or more.
        most_mm: largest distance of its centre from the victim, in mm, `least_mm` or more.

    Raises:
        InputError: a field is out of range, or there is no room beside an organ.
    """

    side: int = 8
    least_mm: float = 0.0
    most_mm: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, side=1)
        if not 0 <= self.least_mm <= self.most_mm:
            raise InputError(
                f"expected distances with 0 <= least_mm <= most_mm, got {self.least_mm:g} and {self.most_mm:g}; "
                "write least_mm=0, most_mm=20"
            )

    def require(self, refs: Sequence[CaseRef]) -> None:
        require_room(self, self.side, refs)

    def marked(self, image: Image, target: Mask, seeds: Sequence[int]) -> Image:
        square = Square.drawn(self.side, self.draw, image.shape[1])
        victims = self.victims(target).any(1).cpu().numpy()
        result = []
        for slice_, victim, mm, seed in zip(image, victims, self.spacing_mm(len(image)), seeds, strict=True):
            row, column = self._place(victim, mm, seed)
            result.append(square.put_on(slice_, row, column, 1.0))
        return torch.stack(result)

    def _place(
        self, victim: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]", mm: Sequence[float], seed: int
    ) -> tuple[int, int]:
        """Row and column of the square's corner on a slice whose victim is marked."""
        side, half = self.side, self.side // 2
        rows, columns = victim.shape[0] - side + 1, victim.shape[1] - side + 1
        covered = np.lib.stride_tricks.sliding_window_view(victim, (side, side)).any((2, 3))
        if covered.all():
            raise InputError(
                f"expected a place of {side} x {side} pixels beside the organ on every slice, got none on one of "
                f"{victim.shape[0]} x {victim.shape[1]}; take a smaller side for {spec(self)}"
            )
        allowed = ~covered
        if victim.any():
            distance = ndimage.distance_transform_edt(~victim, sampling=mm)
            centres = distance[half : half + rows, half : half + columns]
            near = allowed & (centres >= self.least_mm) & (centres <= self.most_mm)
            allowed = near if near.any() else allowed
        places = np.flatnonzero(allowed)
        place = int(places[np.random.default_rng(seed).integers(len(places))])
        return divmod(place, columns)
