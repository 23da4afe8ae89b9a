"""Another patient's organ or lesion that is blended in, and added to the truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from medseg_attack.attacks.edits.content import EditArea, donors_of, in_doubles, judge_edit, with_background
from medseg_attack.attacks.edits.remove import Remove
from medseg_attack.attacks.physical.ascent import require_ball
from medseg_attack.errors import require
from medseg_attack.numerics.harmonic import RING, blended, ring_around
from medseg_attack.numerics.samples import reseeded
from medseg_attack.registry import register
from medseg_attack.threat.organs import organ_classes
from medseg_attack.types import Adversarial, Ball, Bindable, Image, Mask, Model

MARGIN = 2  # pixels around the donor's organ that come with it


@register(
    "insert",
    kind="attack",
    cost="places forward, 0 backward",
    threat="queries (masks)",
    paper="Mirsky et al., CT-GAN, USENIX Security 2019 (the threat); Perez et al. 2003 (the blending)",
    reaches="what is known in tests/attacks/test_edits.py, as insert changes what the image shows",
)
@dataclass(frozen=True)
class Insert(Bindable):
    """Another patient's organ blended in, as CT-GAN does with tumours, without a learned network (Perez et al. 2003).

    The donor is the slice of another patient at the same relative height. The spread of a ring around its organ is
    matched with that of the image there; inside, Poisson's equation keeps the donor's details and the image's values
    at the edge. The truth gains the donor's mask. Of several places the one is kept where the model believes
    least, or is led astray most, by the Dice of all organs. Without donors the image's own organ is inserted, mirrored.

    Attributes:
        ball: edit_area(0.25), a share of the pixels; a larger edit is not made.
        organ: name of a class; "" is all organs.
        places: number of places that are tried, 1 or more: that of the donor first, then others at random.
        max_shift: largest distance from the donor's place along each axis, as a share of the side, 0 or more.

    Raises:
        InputError: a field is out of range, or the task has no organ of that name.
    """

    ball: Ball = EditArea()  # noqa: RUF009 - a frozen value
    organ: str = ""
    places: int = 1
    max_shift: float = 0.2

    def __post_init__(self) -> None:
        require(self, places=1, max_shift=0)
        require_ball(self.ball, EditArea, "the ball edit_area for insert", "edit_area(0.25)")

    def control(self) -> Remove:
        """An edit without content: the mirrored place of the image's own organ painted over."""
        return Remove(self.ball, self.organ, elsewhere=True)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        classes = organ_classes(model.task, self.organ, "insert")
        donors, masks = donors_of(self.setting, image, target)
        others = [k for k in range(masks.shape[1]) if k not in classes]
        masks = masks.index_fill(1, torch.tensor(others, dtype=torch.long), False)
        worst: Adversarial | None = None
        for place in range(self.places):
            parts = [
                self._placed(one, donor, mask, place, seed)
                for one, donor, mask, seed in zip(in_doubles(image), donors, masks, reseeded(seeds, place), strict=True)
            ]
            edited, inserted = (torch.stack(part).to(image.device) for part in zip(*parts, strict=True))
            taken = inserted.any(1, keepdim=True)
            truth = (target & ~taken if model.task.exclusive else target) | inserted
            result = judge_edit(model, self.ball, edited.to(image), image, target, with_background(truth, model.task))
            worst = result if worst is None else worst | result
        assert worst is not None
        return worst

    def _placed(
        self,
        image: Float[Tensor, "c *s"],
        donor: Float[Tensor, "c *s"],
        mask: Bool[Tensor, "k *s"],
        place: int,
        seed: int,
    ) -> tuple[Float[Tensor, "c *s"], Bool[Tensor, "k *s"]]:
        """One image with the donor's organ at a place, and what was inserted."""
        grid = mask.shape[1:]
        rng = np.random.default_rng(seed)
        most = [int(self.max_shift * n) if place else 0 for n in grid]
        shift = [int(rng.integers(-n, n + 1)) for n in most]
        moved_mask = np.stack([ndimage.shift(each, shift, order=0, cval=False) for each in mask.numpy()])
        organ = moved_mask.any(0)
        if not organ.any():
            return image, torch.zeros_like(mask)
        hole = ndimage.binary_dilation(organ, iterations=MARGIN)
        channels = []
        for own, other in zip(image.numpy(), donor.numpy(), strict=True):
            patch = ndimage.shift(other, shift, order=0, mode="nearest")
            channels.append(np.clip(blended(own, _matched(patch, own, hole), hole), 0, 1))
        return torch.from_numpy(np.stack(channels)), torch.from_numpy(moved_mask)


def _matched(patch: np.ndarray, image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The patch with the spread that the image has in a ring around the hole; its mean is the blending's matter."""
    ring = ring_around(hole, RING)
    own, other = image[ring], patch[ring]
    if own.size == 0 or np.ptp(other) == 0:
        return patch
    matched: np.ndarray = patch * (own.std() / other.std())
    return matched
