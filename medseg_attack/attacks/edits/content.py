"""Parts that all edits of content have: a bound of the area, and the truth that goes with the image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medseg_attack.attacks.judging import judge
from medseg_attack.numerics.fields import stretched
from medseg_attack.numerics.harmonic import RING, Hole, shifted, texture
from medseg_attack.numerics.samples import widen
from medseg_attack.registry import register
from medseg_attack.threat.goals.stored import AnotherPatient
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model, PerSample, Setting, Task


@register("edit_area", kind="ball")
@dataclass(frozen=True)
class EditArea(Ball):
    """At most a share `eps` of the pixels may be edited, to any intensity; a larger edit is not made.

    Attributes:
        eps: from 0 to 1.
    """

    unit = "share of the pixels"
    moves_anatomy = True
    restrictable = False
    budgets = "[0, 1]"

    eps: float = 0.25

    def step(self, grad: Image, image: Image) -> Image:
        return torch.zeros_like(image)

    def project(self, x: Image, x0: Image) -> Image:
        return torch.where(widen(self.size(x, x0) <= self.eps, x), x.clamp(0, 1), x0)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        return x0.clone()

    def size(self, x: Image, x0: Image) -> PerSample:
        return (x != x0).any(1).flatten(1).to(x0.dtype).mean(1)


def judge_edit(model: Model, ball: Ball, x: Image, image: Image, target: Mask, truth: Mask) -> Adversarial:
    """The edited images, each with the truth that it shows; one that is too large is left out with its truth."""
    fits = ball.size(x, image) <= ball.limit
    x, truth = torch.where(widen(fits, x), x, image), torch.where(widen(fits, truth), truth, target)
    return replace(judge(model, ball, x, image, truth), truth=truth)


def with_background(mask: Mask, task: Task) -> Mask:
    """The mask with what no organ takes as background, of an exclusive task."""
    return torch.cat((~mask[:, 1:].any(1, keepdim=True), mask[:, 1:]), 1) if task.exclusive else mask


def donors_of(setting: Setting | None, image: Image, target: Mask) -> tuple[Float[Tensor, "b c *s"], Mask]:
    """Images and masks of other patients at the same relative height, on the grid of the images, on the CPU.

    Where no donors are known they are the images' own, mirrored.
    """
    if setting is None or setting.donors is None or len(setting.cases) != len(image):
        return in_doubles(image).flip(-1), target.cpu().flip(-1)
    cases = [AnotherPatient().donor_of(case, setting.donors) for case in setting.cases]
    grid = tuple(image.shape[2:])
    images = torch.cat([stretched(in_doubles(case.image[None]), grid) for case in cases])
    masks = torch.cat([F.interpolate(case.target[None].float(), grid, mode="nearest-exact") for case in cases])
    return images, masks > 0.5


def texture_beside(image: Float[Tensor, "c *s"], hole: Hole, seed: int) -> NDArray[np.float64]:
    """Fine texture from beside a hole on its pixels, as strong as in a ring around it, and 0 elsewhere.

    It comes from one side, of all channels alike: of those sides that have most pixels with noise, by the seed.

    Args:
        image: of one sample, on the CPU.
        hole: not empty.
    """
    noisy = ((image > 0) & (image < 1)).any(0).numpy() & ~hole  # air and clipped values hold no noise
    sides = [
        tuple(sign * (int(np.ptp(places)) + 1 + RING) if at == axis else 0 for at in range(hole.ndim))
        for axis, places in enumerate(np.nonzero(hole))
        for sign in (-1, 1)
    ]
    drawn = np.random.default_rng(seed).permutation(len(sides))
    shift = max((sides[n] for n in drawn), key=lambda side: int(shifted(noisy, side)[hole].sum()))
    return np.stack([texture(channel, hole, shift) for channel in image.numpy()])


def in_doubles(image: Tensor) -> Tensor:
    """A copy on the CPU that numpy can solve with."""
    return image.detach().cpu().double()
