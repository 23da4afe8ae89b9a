"""Regions: balls that are held to a part of the image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medseg_attack.data.formats.pictures import read_mask
from medseg_attack.errors import InputError, nearest
from medseg_attack.registry import register
from medseg_attack.storage.files import file_hash
from medseg_attack.threat.balls.base import AroundBall
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Ball, Bindable, Case, Image, PerSample, Setting

REGIONS = "body, outside:ORGAN, ring:10mm or mask:FILE"
RegionMask = NDArray[np.bool_]


@register("within", kind="ball")
@dataclass(frozen=True)
class Within(Bindable, AroundBall):
    """Only a region of the image may change, in a ball; pixels outside of it stay as they are.

    Every case has its own region, so the ball must be bound to its cases; the loop does that.

    Attributes:
        ball: how the region may change.
        region: "body" (the largest part of the image that is not dark, and what it encloses), "outside:ORGAN" (not on
            the truth of that organ), "ring:10mm" (outside of all organs, and no further than that from one) or
            "mask:FILE" (an NPY or PNG of the case's grid, or an NPY of its whole scan, slices first; not 0 is inside).
        content: SHA-256 of that file, 16 hex digits; "" is computed. So rows are not taken for those of another mask
            under the same name.

    Raises:
        InputError: the ball cannot be held to a region, or the file of a mask has another hash.
    """

    restrictable = False

    ball: Ball = Linf()
    region: str = "body"
    content: str = ""

    def __post_init__(self) -> None:
        kind, value = parse_region(self.region)
        if not self.ball.restrictable:
            raise InputError(
                f"expected an attack on intensities for --region {self.region}, got one in {self.ball}; drop --region"
            )
        if kind == "mask":
            content = _digest(Path(value))
            if self.content not in ("", content):
                raise InputError(
                    f"expected the mask with hash {self.content} in {value}, got {content}; restore that file"
                )
            object.__setattr__(self, "content", content)

    @property
    def unrestricted(self) -> Ball:
        return self.ball

    def prepare(self, setting: Setting) -> None:
        for case in setting.cases:
            self._region_of(case, setting)

    @cached_property
    def mask(self) -> Bool[Tensor, "b 1 *s"]:
        """The region of each case, (b, 1, *s), on the CPU.

        Raises:
            InputError: the ball was not bound to its cases.
        """
        if self.setting is None or not self.setting.cases:
            raise InputError(
                f"region {self.region!r} is another one for every case; run the attack through 'medattack'"
            )
        regions = [self._region_of(case, self.setting) for case in self.setting.cases]
        return torch.stack([torch.from_numpy(region) for region in regions])[:, None]

    def _region_of(self, case: Case, setting: Setting) -> RegionMask:
        return setting.computed((self.region, case), region_of, case, self.region)

    def free(self, image: Image) -> Bool[Tensor, "b c *s"]:
        return self.ball.free(image) & self.mask.to(image.device)

    def step(self, grad: Image, image: Image) -> Image:
        mask = self.mask.to(grad.device)
        return self.ball.step(grad * mask, image) * mask

    def project(self, x: Image, x0: Image) -> Image:
        mask = self.mask.to(x.device)
        # cut first, so that what cannot be used does not take from what can; a ball may still give black pixels back
        return torch.where(mask, self.ball.project(torch.where(mask, x, x0), x0), x0)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        return self.project(self.ball.sample(x0, seeds), x0)

    def size(self, x: Image, x0: Image) -> PerSample:
        outside = ((x != x0) & ~self.mask.to(x.device)).flatten(1).any(1)
        return torch.where(outside, torch.inf, self.ball.size(x, x0))


def parse_region(region: str) -> tuple[str, str]:
    """Kind and value of a region as it is typed.

    Raises:
        InputError: the text is not a region.

    >>> parse_region("ring:2.5mm")
    ('ring', '2.5')
    """
    kind, _, value = region.partition(":")
    if kind == "ring" and value.endswith("mm"):
        value = value.removesuffix("mm")
        if value.replace(".", "", 1).isdecimal() and 0 < float(value) < math.inf:
            return kind, value
    if (kind == "body" and not value) or (kind in ("outside", "mask") and value):
        return kind, value
    raise InputError(f"expected --region {REGIONS}, got {region!r}; write ring:10mm")


def check_organ(region: str, classes: Sequence[str]) -> None:
    """Refuses a region of an organ that is not among `classes`."""
    kind, value = parse_region(region)
    if kind == "outside" and value not in classes:
        raise InputError(
            f"expected an organ of this data set in --region {region}, got {value!r}; {nearest(value, classes)}"
        )


def region_of(case: Case, region: str) -> RegionMask:
    """The pixels of a case that belong to the region, on its grid.

    Raises:
        InputError: the organ is not known, or the mask has another grid.
    """
    kind, value = parse_region(region)
    if kind == "body":
        return body(case.image[0].numpy())
    if kind == "mask":
        return _from_file(Path(value), case)
    target = case.target.numpy()
    if kind == "outside":
        check_organ(region, case.classes)
        outside: RegionMask = ~target[case.classes.index(value)]
        return outside
    organs = target[[k for k, name in enumerate(case.classes) if name != "background"]].any(0)
    if not organs.any():
        return np.zeros_like(organs)
    away = ndimage.distance_transform_edt(~organs, sampling=case.spacing_mm)
    ring: RegionMask = (away > 0) & (away <= float(value))
    return ring


def body(image: NDArray[Any]) -> RegionMask:
    """The largest bright part of an image, its holes filled: the body of a patient.

    Bright is what lies more than a tenth of the way from the 2nd to the 98th percentile (the threshold of BET, Smith
    2002) after a median filter. Otsu's threshold does not do: in cardiac MRI it parts blood and fat from everything
    else. Lungs that touch the border of the image count as outside.
    """
    calm = ndimage.median_filter(image.astype(np.float64), 3)
    dark, bright = np.percentile(calm, [2, 98])
    labels, count = ndimage.label(calm > dark + 0.1 * (bright - dark))
    if count == 0:
        return np.ones(image.shape, bool)
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    filled: RegionMask = ndimage.binary_fill_holes(largest)
    return filled


def _digest(file: Path) -> str:
    if not file.is_file():
        raise InputError(f"expected a mask in {file}, got no file; write the path of one after mask:")
    return file_hash(file)[:16]


def _from_file(file: Path, case: Case) -> RegionMask:
    array = read_mask(file)
    grid = tuple(case.image.shape[1:])
    if array.shape[1:] == grid and case.stack is not None and len(array) == case.stack.slices:
        array = array[case.stack.index]
    if array.shape != grid:
        raise InputError(f"expected a mask of {grid} for {case.id}, got {array.shape} in {file}; write one of its grid")
    inside: RegionMask = array != 0
    return inside
