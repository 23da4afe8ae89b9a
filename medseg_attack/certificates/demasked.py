"""Demasked smoothing: answers that no patch changes unnoticed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from medseg_attack.certificates.base import Bound, Certificate, decided
from medseg_attack.certificates.entries import agreement, entry_bounds
from medseg_attack.certificates.soundness import worst_columns
from medseg_attack.errors import InputError, require
from medseg_attack.metrics.overlap import counts
from medseg_attack.registry import register
from medseg_attack.types import Batch, Image, Mask, Model, Task


@dataclass(frozen=True, eq=False)
class Unmasked:
    """The plain answer, and where no strip over the image changes it.

    Attributes:
        verified: by the width of the patch.
    """

    answer: Mask
    verified: Mapping[float, Bool[Tensor, "b h *s"]]


@register("demasked", kind="certificate", paper="Yatsura et al., ICLR 2023")
@dataclass(frozen=True)
class Demasked(Certificate):
    """An answer that is verified is changed by no patch that leaves it verified.

    Demasked smoothing (Yatsura et al., arXiv 2209.05980), detection: strips of columns, of which one covers every
    patch of the radius' columns wholly, are filled from the columns beside them. An answer is verified if it is the
    same under every strip. A patch can then take away that an answer is verified, but cannot turn it unnoticed. The
    fill is linear between the columns beside a strip, where the paper inpaints with a network. Nothing is drawn at
    random, and any model can be certified that answers the same twice.

    Attributes:
        stride: columns between two strips; fewer strips are wider ones.

    Raises:
        InputError: `stride` is below 1, or the radius is no number of whole columns.
    """

    stride: int = 16

    quantity: ClassVar[str] = "Dice"
    measure: ClassVar[str] = (
        "the neighbouring columns of each slice, or of a scan that is read whole, that a patch of any content changes"
    )
    needs_repeats: ClassVar[bool] = True
    promise: ClassVar[str] = (
        "Certified is that no patch turns a verified answer and leaves it verified; an answer that is not verified "
        "counts as wrong, and one that a patch makes so is an alarm, not a right answer."
    )

    def __post_init__(self) -> None:
        require(self, stride=1)

    @property
    def default_radii(self) -> tuple[float, ...]:
        return 5.0, 10.0

    def passes(self, shape: tuple[int, ...], radii: Sequence[float]) -> int:
        return 1 + sum(len(strips(shape[-1], int(radius), self.stride)) for radius in radii)

    def require(self, radius: float, task: Task, shapes: Sequence[tuple[int, ...]]) -> None:
        most = min(shape[-1] for shape in shapes) - 1
        if radius != int(radius) or not 0 <= radius <= most:
            raise InputError(
                f"expected a patch of 0 to {most} whole columns for demasked, got {radius:g}; change --radius"
            )

    def observe(self, model: Model, scan: Batch, radii: Sequence[float], seed: int, batch_size: int) -> Unmasked:
        answer = decided(model, scan.image, scan.cases, batch_size)
        exclusive = model.task.exclusive
        verified = {radius: torch.ones_like(agreement(answer, answer, exclusive)) for radius in radii}
        for radius in radii:
            for first, last in strips(scan.image.shape[-1], int(radius), self.stride):
                mask = decided(model, filled(scan.image, first, last), scan.cases, batch_size)
                verified[radius] &= agreement(mask, answer, exclusive)
        return Unmasked(answer, verified)

    def bounds(self, observed: Unmasked, scan: Batch, model: Model, radii: Sequence[float]) -> list[Bound]:
        clean = counts(observed.answer, scan.target).sum(0)
        return [
            bound
            for radius in radii
            for bound in entry_bounds(scan, model, radius, observed.answer, observed.verified[radius], clean)
        ]

    def certain(self, observed: Unmasked, radius: float, model: Model) -> Bool[Tensor, "b *s"]:
        return observed.verified[radius].all(1)

    def attacked(self, model: Model, scan: Batch, radius: float, seed: int) -> Iterator[Image]:
        yield worst_columns(model, scan, int(radius))

    def refuted(self, observed: Unmasked, elsewhere: Unmasked, scan: Batch, model: Model, radius: float) -> str:
        same = agreement(elsewhere.answer, observed.answer, model.task.exclusive)
        turned = int((observed.verified[radius] & elsewhere.verified[radius] & ~same).sum())
        return f"{turned} verified answers are others on the changed scan, and verified there" if turned else ""


def strips(columns: int, patch: int, stride: int) -> list[tuple[int, int]]:
    """First and last column of strips, of which one covers any `patch` neighbouring columns.

    >>> strips(128, 13, 16)[:2], len(strips(128, 13, 16))
    ([(0, 27), (16, 43)], 8)
    """
    if patch == 0:
        return []
    return [(first, min(first + patch + stride - 2, columns - 1)) for first in range(0, columns - patch + 1, stride)]


def filled(image: Image, first: int, last: int) -> Image:
    """The image with the columns from `first` to `last` replaced: linear between those beside them, or constant."""
    columns = image.shape[-1]
    left, right = max(first - 1, 0), min(last + 1, columns - 1)
    if first == 0 and last == columns - 1:
        return torch.zeros_like(image)
    ends = [image[..., right if first == 0 else left], image[..., left if last == columns - 1 else right]]
    share = torch.linspace(0, 1, last - first + 3, device=image.device, dtype=image.dtype)[1:-1]
    result = image.clone()
    result[..., first : last + 1] = ends[0][..., None] * (1 - share) + ends[1][..., None] * share
    return result
