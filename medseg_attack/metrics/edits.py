"""Measures of an edit: whether a model believes it, and what else it changed (Mirsky et al. 2019; Zhou et al. 2021)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from medseg_attack.metrics.harm import harm
from medseg_attack.metrics.visibility import SIDE, ssim_map
from medseg_attack.numerics.noise import noise_of
from medseg_attack.types import Image, Mask

BELIEVED = 0.5  # share of an inserted mask that is predicted
FORGOTTEN = 0.1  # share of a removed mask that is still predicted


@dataclass(frozen=True)
class Edit:
    """Measures of one edited image.

    Attributes:
        belief: whether the model draws what was inserted (recall 0.5 or more), or no more than a tenth of what was
            removed; None where nothing was.
        collateral: Dice of the predictions before and after outside of the box around the edit; 1 where nothing else
            changed.
        similarity: SSIM of the two images inside the box, in plane.
        noise: ratio of the noise inside the box, after and before.
        volume: change of the predicted volume in pixels, of the classes that were edited.
    """

    belief: bool | None
    collateral: float
    similarity: float
    noise: float
    volume: int


def measured_edit(image: Image, edited: Image, before: Mask, after: Mask, target: Mask, truth: Mask) -> Edit:
    """Measures of one edit, of batches of one sample.

    Args:
        before: prediction on the untouched image.
        after: prediction on the edited one.
        target: truth of the untouched image, of the classes that count.
        truth: that of the edited one.
    """
    inserted, removed = truth & ~target, target & ~truth
    box = box_of((image != edited).any(1)[0], SIDE)
    outside = torch.ones_like(before[0, 0])
    outside[box] = False
    collateral = 1 - harm(before & outside, after & outside).item()
    region = (slice(None), slice(None), *box)
    classes = (inserted | removed).flatten(2).any(2)[0]
    shown = inserted if inserted.any() else removed
    belief = None
    if shown.any():
        share = (after & shown).sum().item() / shown.sum().item()
        belief = share >= BELIEVED if inserted.any() else share <= FORGOTTEN
    volume = int(after[:, classes].sum().item() - before[:, classes].sum().item())
    noise = (noise_of(edited[region]) / noise_of(image[region])).item()
    similarity = ssim_map(edited[region], image[region]).mean().item()
    return Edit(belief, collateral, similarity, noise, volume)


def box_of(mask: Bool[Tensor, "*s"], least: int) -> tuple[slice, ...]:
    """The smallest box around the marked pixels with so many pixels a side, if the grid has them; or all of the grid.

    Args:
        least: pixels of each side in plane: a window of SSIM must fit.
    """
    if not mask.any():
        return tuple(slice(0, n) for n in mask.shape)
    sides = []
    for axis, (at, n) in enumerate(zip(mask.nonzero(as_tuple=True), mask.shape, strict=True)):
        low, high = int(at.min()), int(at.max()) + 1
        more = max(0, least - (high - low)) if axis >= mask.ndim - 2 else 0
        low = max(0, min(low - more // 2, n - (high - low) - more))
        sides.append(slice(low, min(n, max(high, low + least) if more else high)))
    return tuple(sides)
