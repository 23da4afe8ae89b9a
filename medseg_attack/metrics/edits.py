"""Measures of an edit: whether a model believes it, and what else it changed (Mirsky et al. 2019; Zhou et al. 2021)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medseg_attack.metrics.harm import harm
from medseg_attack.metrics.visibility import SIDE, ssim_map
from medseg_attack.numerics.harmonic import RING, ring_around
from medseg_attack.numerics.noise import noise_of, second_differences
from medseg_attack.numerics.samples import TINY
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
        seam: ratio of the mean step in intensity across the border of the edited pixels, after and before; 1 where
            they have none.
        volume: change of the predicted volume in pixels, of the classes that were edited.
    """

    belief: bool | None
    collateral: float
    similarity: float
    noise: float
    seam: float
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
    place = (image != edited).any(1)[0]
    box = box_of(place, SIDE)
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
    after_edit, before_edit = (_steps(x, place)[0].mean() for x in (edited, image))
    seam = (after_edit / before_edit).item() if place.any() and not place.all() else 1.0
    return Edit(belief, collateral, similarity, noise, seam, volume)


def noise_contrast(image: Image, place: Bool[Tensor, "*s"]) -> float:
    """How much the noise of a place differs from that around it, |log2| of the ratio: it gives an edit away.

    Unlike the ratio of `measured_edit` it needs no untouched image. The noise is Immerkaer's (`numerics.noise`), in
    3 x 3 windows that lie in the place, and in those at most 6 pixels beside it.

    Args:
        image: of one sample.
        place: the pixels that may have been edited.

    Returns:
        NaN where a side has no noise or no window.
    """
    planes = image.reshape(-1, 1, *image.shape[-2:])
    touched = F.max_pool2d(_planes(place, image), 3, stride=1) > 0
    inside = F.max_pool2d(1 - _planes(place, image), 3, stride=1) == 0
    around = (_planes(_ring(place), image)[..., 1:-1, 1:-1] > 0) & ~touched
    response = second_differences(planes).abs()
    return _contrast(*(response[part].quantile(0.5) if part.any() else math.nan for part in (inside, around)))


def noise_p_value(image: Image, place: Bool[Tensor, "*s"], side: int = 16) -> float:
    """The p-value of a place having the noise of its surroundings, by permuting blocks: it gives an edit away.

    The slices are cut into blocks from the first corner of the place on. The noise of each is the median of Immerkaer's
    second differences within it. The statistic is |log| of the ratio of two medians of these: of the blocks that lie in
    the place, and of those outside of it that are at most two blocks away. It is compared with those of 999 random
    partitions of the blocks. Blocks whose noise differs by anatomy raise false alarms: look at untouched images too.

    Args:
        image: of one sample.
        place: the pixels that may have been edited.
        side: pixels of a block, 3 or more.

    Returns:
        0.001 to 1; NaN where no block lies in the place or none around it. Where few partitions differ it is not small:
        with one block of n in the place about 1 / n.
    """
    if not place.any():
        return math.nan
    box, near = box_of(place, 1), torch.zeros_like(place)
    grown = (slice(max(0, at.start - 2 * side), at.stop + 2 * side) for at in box[-2:])
    near[(*box[:-2], *grown)] = True
    content, marked, close = (_blocks(x, [at.start % side for at in box[-2:]], side) for x in (image[0], place, near))
    values = content.movedim(0, -3).flatten(0, -4)  # (blocks, c, side, side)
    inner = values[..., 1:-1, 1:-1]
    response = second_differences(values.flatten(0, 1)[:, None]).view_as(inner).abs()
    noise = response.where((inner > 0) & (inner < 1), math.nan).flatten(1).nanmedian(1).values
    marked, close = marked.flatten(-2).flatten(0, -2), close.flatten(-2).flatten(0, -2)
    known = ~noise.isnan()
    inside, around = noise[marked.all(1) & known], noise[~marked.any(1) & close.all(1) & known]
    if not len(inside) or not len(around):
        return math.nan
    levels = torch.cat((inside, around)).double().cpu().numpy()
    partitions = np.random.default_rng(0).permuted(np.tile(levels, (999, 1)), axis=1)
    own, other = (
        np.log(np.median(part, 1) + TINY) for part in np.split(np.vstack((levels, partitions)), [len(inside)], axis=1)
    )
    apart = np.abs(own - other)
    return float((apart >= apart[0] - TINY).mean())


def _blocks(plane: Tensor, corner: list[int], side: int) -> Tensor:
    """Whole blocks of the last two axes, from a corner on: (..., rows, columns, side, side)."""
    return plane[..., corner[0] :, corner[1] :].unfold(-2, side, side).unfold(-2, side, side)


def edge_contrast(image: Image, place: Bool[Tensor, "*s"]) -> float:
    """How much the border of a place stands out as an edge: it gives an edit away.

    It is |log2| of the ratio of two mean steps in intensity between neighbours in plane: those across the border, and
    those between pixels at most 6 outside of it. A seam is sharper than its surroundings, a feathered one softer.

    Args:
        image: of one sample.
        place: the pixels that may have been edited.

    Returns:
        NaN where a side has no step.
    """
    return _contrast(*(part.mean() if len(part) else math.nan for part in _steps(image, place)))


def _steps(image: Image, place: Bool[Tensor, "*s"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    """Steps between neighbours in plane: those across the border of a place, and those between pixels around it."""
    across, around, ring = [], [], _ring(place)
    for axis in (-2, -1):
        step, n = image[0].diff(dim=axis).abs(), image.shape[axis] - 1
        (low, high), (near, far) = ((mask.narrow(axis, 0, n), mask.narrow(axis, 1, n)) for mask in (place, ring))
        across.append(step[:, low ^ high].flatten())
        around.append(step[:, near & far].flatten())
    return torch.cat(across), torch.cat(around)


def _ring(place: Bool[Tensor, "*s"]) -> Bool[Tensor, "*s"]:
    return torch.from_numpy(ring_around(place.cpu().numpy(), RING)).to(place.device)


def _planes(mask: Bool[Tensor, "*s"], image: Image) -> Float[Tensor, "n 1 h w"]:
    """The mask of every channel and slice of an image of one sample, as 0 and 1."""
    return mask.to(image).expand(image.shape[1:]).reshape(-1, 1, *mask.shape[-2:])


def _contrast(inside: Tensor | float, around: Tensor | float) -> float:
    return abs(math.log2(float(inside) / float(around))) if float(inside) > 0 and float(around) > 0 else math.nan


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
