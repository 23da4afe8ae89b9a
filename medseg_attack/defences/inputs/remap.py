"""A monotone map of intensities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator

from medseg_attack.defences.input_layers import InputDefence
from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.types import Image


@register(
    "remap", kind="defence", paper="the idea of Cheng & Ji, 2020", cost="1 forward", attacked_with="pgd(steps=40)"
)
@dataclass(frozen=True)
class Remap(InputDefence):
    """Intensities through a monotone spline, away from where a perturbation moves them (the idea of Cheng & Ji, 2020).

    A control that is expected to fail: it is differentiable, and only its slope changes what eps means.

    Attributes:
        values: images of 0, ..., 1 at equal distances, rising, in [0, 1].

    Raises:
        InputError: there are fewer than two values, or they do not rise from 0 on to at most 1.
    """

    values: tuple[float, ...] = (0.0, 0.15, 0.5, 0.85, 1.0)

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.values, self.values[1:], strict=False))
        if len(self.values) < 2 or not rising or self.values[0] < 0 or self.values[-1] > 1:
            raise InputError(
                f"expected rising values in [0, 1] for remap, got {self.values}; write (0.0, 0.15, 0.5, 0.85, 1.0)"
            )

    def __call__(self, image: Image, seeds: Sequence[int]) -> Image:
        n = len(self.values) - 1
        spline = PchipInterpolator(np.linspace(0, 1, n + 1), np.asarray(self.values, float))
        pieces = torch.from_numpy(spline.c).to(image)  # (4, n), the highest power first
        place = (image.detach() * n).long().clamp(0, n - 1)
        x = image - place.to(image) / n
        a, b, c, d = (row[place] for row in pieces)
        result: Image = (((a * x + b) * x + c) * x + d).clamp(self.values[0], self.values[-1])
        return result
