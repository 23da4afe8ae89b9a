"""Networks whose deepest layer gets hand-made features of the image beside the learned ones."""

from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from medseg_attack.errors import InputError
from medseg_attack.models.networks.convolutions import CONVOLUTIONS
from medseg_attack.models.networks.smp import unet_small
from medseg_attack.models.saturation import Saturated
from medseg_attack.models.segmodel import SegModel, resized
from medseg_attack.models.sliding_window import MirrorAverage, SlidingWindow
from medseg_attack.registry import register
from medseg_attack.types import Task

SOFTNESS = 0.05  # of a stand-in's comparison, in intensities as the network gets them
AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))  # neighbours, bit by bit
_features: ContextVar[Tensor | None] = ContextVar("features", default=None)


@register("feature_fusion", kind="model")
def feature_fusion(task: Task, model: Any = unet_small) -> SegModel:
    """A network that adds edges and local binary patterns of the image to its deepest features (Lal et al. 2021).

    They are mixed by a learned layer that begins with zeros, so that it begins as the network within. Patterns have no
    gradient; `bpda(attack=pgd)` takes that of soft comparisons. The paper fuses features of several networks on top of
    adversarial training, and attacks none of them knowing that.

    Args:
        model: a registered network with convolutions.

    Raises:
        InputError: the network has no convolution.
    """
    built: SegModel = model(task)
    owner: Any = built.net if isinstance(built.net, SlidingWindow | MirrorAverage) else built
    convolutions = [(name, layer) for name, layer in owner.net.named_modules() if isinstance(layer, CONVOLUTIONS)]
    if not convolutions or convolutions[0][0] == "":
        raise InputError(
            "expected a network with convolutions among its layers for feature_fusion, got another; take unet_small"
        )
    name, deepest = max(convolutions, key=lambda pair: pair[1].out_channels)
    parent, _, child = name.rpartition(".")
    owner.net.get_submodule(parent).add_module(child, Fused(deepest))
    owner.net = WithFeatures(owner.net)
    return built


class WithFeatures(nn.Module):
    """A network whose layers find hand-made features of its input."""

    contained = ("net",)

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.patterns = net, Patterns()

    def forward(self, x: Tensor) -> Tensor:
        grey = x.mean(1, keepdim=True)
        token = _features.set(torch.cat((edges(grey), self.patterns(grey)), 1))
        try:
            out: Tensor = self.net(x)
        finally:
            _features.reset(token)
        return out


class Fused(nn.Module):
    """A convolution to whose answer a mix of the hand-made features is added: one on all channels together."""

    contained = ("conv",)

    def __init__(self, conv: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.conv, self.mix = conv, type(conv)(2, conv.out_channels, 1, bias=False)
        nn.init.zeros_(self.mix.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        features = _features.get()
        assert features is not None  # the network around sets them
        mixed: Tensor = self.mix(resized(features, tuple(out.shape[2:])))
        return out + mixed


class Patterns(nn.Module):
    """The layer of local binary patterns: which of 8 neighbours in a slice are as bright, as a number in [0, 1].

    Outside of an image its border goes on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.compare = AtLeast()

    def forward(self, grey: Float[Tensor, "b 1 *s"]) -> Float[Tensor, "b 1 *s"]:
        rows, columns = grey.shape[-2:]
        flat = grey.reshape(-1, 1, rows, columns)
        padded = functional.pad(flat, (1, 1, 1, 1), mode="replicate")
        bits = [
            self.compare(padded[..., 1 + i : 1 + i + rows, 1 + j : 1 + j + columns] - flat) * (1 << bit)
            for bit, (i, j) in enumerate(AROUND)
        ]
        return torch.stack(bits).sum(0).view_as(grey) / ((1 << len(AROUND)) - 1)


class AtLeast(Saturated):
    """The comparison `x >= 0`, 0 or 1."""

    def exact(self, x: Tensor) -> Tensor:
        return (x >= 0).to(x)

    def smooth(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x / SOFTNESS)


def edges(grey: Float[Tensor, "b 1 *s"]) -> Float[Tensor, "b 1 *s"]:
    """The length of the gradient within a slice, by central differences, in intensities per pixel."""
    squares = grey.new_zeros(())
    for axis in (-2, -1):
        n = grey.shape[axis]
        after, before = torch.arange(n) + 1, torch.arange(n) - 1
        ends = (index.clamp(0, n - 1).to(grey.device) for index in (after, before))
        above, below = (grey.index_select(axis, end) for end in ends)
        squares = squares + ((above - below) / 2).square()
    return (squares + 1e-12).sqrt() - 1e-6
