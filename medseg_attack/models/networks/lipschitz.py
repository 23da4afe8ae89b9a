"""A small U-Net whose answers move no further than a known multiple of the image's change in L2."""

import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import register
from medseg_attack.types import Task

FREQUENCIES = 32  # along each axis, at which the norm of a kernel is computed
GAIN = 1.6  # of a convolution of 3 x 3, which the library makes that much smaller than it need be
SLACK = 1e-5  # of a constant, for sums in float32


class LipschitzNetwork(nn.Module, ABC):
    """A network from (b, c, h, w) to logits whose constant is known."""

    @abstractmethod
    def constant(self) -> float:
        """A number that bounds `|logits(x + d) - logits(x)| / |d|`, both in L2 over all pixels and channels."""


@register("unet_lipschitz", kind="model")
def unet_lipschitz(task: Task, *, channels: tuple[int, ...] = (16, 32, 64), scale: float = 20.0) -> SegModel:
    """A U-Net of 1-Lipschitz layers (deel-torchlip), for the certificate `lipschitz`, on the scan's own grid.

    Convolutions are normalised spectrally and made near orthogonal, activations sort pairs of channels, images shrink
    by moving pixels to channels, and what is joined is scaled. There is no norm of a batch. After Massena et al. (arXiv
    2512.06010), with a constant that is computed from the trained kernels and not assumed. Expect a lower clean Dice.

    Args:
        channels: channels of each level, from the top; 2 levels or more of even numbers.
        scale: factor of the logits, above 0, the inverse of a temperature of the training loss.

    Raises:
        InputError: deel-torchlip is not installed, or an option is out of range.
    """
    if len(channels) < 2 or any(type(n) is not int or n < 2 or n % 2 for n in channels) or not 0 < scale < math.inf:
        raise InputError(
            f"expected channels=(top, ..., bottom), 2 or more even numbers from 2, and scale above 0, got {channels} "
            f"and {scale}; e.g. channels=(16, 32, 64), scale=20.0"
        )
    with torch.device("cpu"):  # the layers iterate when they are built
        net = LipschitzUNet(task.channels, len(task.classes), channels, scale)
    return SegModel(net, task, stride=2 ** (len(channels) - 1))


class LipschitzUNet(LipschitzNetwork):
    """The network of `unet_lipschitz`."""

    def __init__(self, inside: int, classes: int, channels: tuple[int, ...], scale: float) -> None:
        super().__init__()
        try:
            from deel import torchlip
        except ImportError as error:
            raise InputError(
                "expected deel-torchlip for unet_lipschitz, got none; install it: "
                "pip install 'medseg-attack[lipschitz]'"
            ) from error

        def block(first: int, last: int) -> nn.Sequential:
            convs = [torchlip.SpectralConv2d(n, last, 3, padding=1, k_coef_lip=GAIN) for n in (first, last)]
            return nn.Sequential(convs[0], torchlip.GroupSort2(), convs[1], torchlip.GroupSort2())

        self.scale = scale
        self.top = block(inside, channels[0])
        self.down = nn.ModuleList(
            nn.Sequential(nn.PixelUnshuffle(2), block(4 * upper, lower)) for upper, lower in pairwise(channels)
        )
        self.up = nn.ModuleList(block(lower + upper, upper) for upper, lower in reversed(list(pairwise(channels))))
        self.out = torchlip.SpectralConv2d(channels[0], classes, 1)

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        levels = [self.top(image - 0.5)]
        for shrink in self.down:
            levels.append(shrink(levels[-1]))
        x = levels[-1]
        for block, skip in zip(self.up, levels[-2::-1], strict=True):
            x = block(torch.cat((spread(x), skip), 1))
        result: Tensor = self.scale * self.out(x)
        return result

    def constant(self) -> float:
        squares = [_of_layers(self.top) ** 2]  # of the constants of the levels, of what joins them as of stacked maps
        for shrink in self.down:
            squares.append(squares[-1] * _of_layers(shrink) ** 2)
        square = squares[-1]
        for block, skip in zip(self.up, squares[-2::-1], strict=True):
            square = (square + skip) * _of_layers(block) ** 2
        return self.scale * math.sqrt(square) * _of_layers(self.out) * (1 + SLACK)


def spread(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
    """The image on a grid of twice the pixels along each axis, each value halved, so that its L2 norm is kept."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3) / 2


def _of_layers(layers: Any) -> float:
    """The product of the constants of the convolutions; sorting and moving pixels have the constant 1."""
    return math.prod(operator_norm(layer.weight) for layer in layers.modules() if isinstance(layer, nn.Conv2d))


@torch.no_grad()
def operator_norm(kernel: Float[Tensor, "o i h w"]) -> float:
    """An upper bound of the L2 norm of a convolution with zeros around the image, on whatever grid.

    It is a part of the convolution on an endless grid, whose norm is the greatest singular value of the kernel's
    Fourier transform. That is a trigonometric polynomial of degree d = (side - 1) / 2 along each axis, up to a phase,
    so between N frequencies it is at most 1 / cos(pi d / N) times as large as at them (Ehlich & Zeller 1964).
    """
    spectrum = torch.fft.fft2(kernel.detach().double(), s=(FREQUENCIES, FREQUENCIES))
    largest = torch.linalg.matrix_norm(spectrum.permute(2, 3, 0, 1), 2).max().item()
    between = math.prod(math.cos(math.pi * (side - 1) / 2 / FREQUENCIES) for side in kernel.shape[2:])
    return float(largest / between)
