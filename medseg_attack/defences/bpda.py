"""Layers without a useful gradient, attacked as if they had one."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn

from medseg_attack.numerics.samples import straight_through
from medseg_attack.types import Image

Layer: TypeAlias = Callable[[Image], Image]


def identity(image: Image) -> Image:
    """The image itself: the stand-in for a layer that changes little."""
    return image


class Bpda(nn.Module):
    """A layer with the values of `exact` and the gradient of `smooth`.

    Athalye, Carlini & Wagner, arXiv 1802.00420, section 4.1.

    Attributes:
        exact: the layer that is computed; it keeps the shape of its input, and its own gradient is not used.
        smooth: a differentiable function that is close to it; the identity for quantising, JPEG or denoising.
    """

    def __init__(self, exact: Layer, smooth: Layer = identity) -> None:
        super().__init__()
        self.exact, self.smooth = exact, smooth

    def forward(self, image: Image) -> Image:
        with torch.no_grad():
            exact = self.exact(image)
        return straight_through(exact, self.smooth(image))
