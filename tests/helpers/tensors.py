"""Images in tensors, and a network that finds what is brighter than half of the window."""

from typing import Any

import torch
from torch import Tensor, nn

import medseg_attack as ma
from medseg_attack.models.segmodel import SegModel


def threshold(channels: int = 1, dims: int = 2) -> nn.Module:
    """A network whose logit is 8 times the distance of a pixel from 1/2, in eval mode."""
    kind: Any = nn.Conv3d if dims == 3 else nn.Conv2d
    net: nn.Module = kind(channels, 1, 1).eval()
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), (8.0, -4.0), strict=True):
            parameter.fill_(value)
    return net


def bright_model(dims: int = 2) -> SegModel:
    return ma.wrap(threshold(dims=dims), classes=["lesion"], exclusive=False, dims=dims)


def squares(n: int = 3, dims: int = 2, contrast: float = 0.1) -> tuple[Tensor, Tensor]:
    """Images with a bright square each, of another size, and its masks."""
    masks = torch.zeros(n, 1, *(4,) * (dims - 2), 16, 16, dtype=torch.bool)
    for i in range(n):
        masks[i, ..., 2 : 8 + i, 3:9] = True
    return 0.5 - contrast / 2 + contrast * masks, masks
