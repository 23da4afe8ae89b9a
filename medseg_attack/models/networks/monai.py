"""MONAI's networks in 2-D and 3-D, over the whole image or behind sliding windows.

The library is imported inside the functions: it costs seconds, and every look-up in the registry imports this file.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from medseg_attack.errors import InputError, refusing
from medseg_attack.models.segmodel import SegModel
from medseg_attack.models.sliding_window import Flip, MirrorAverage, SlidingWindow
from medseg_attack.registry import register, spec
from medseg_attack.types import Task

_COUNT = "[1, inf)"


@dataclass(frozen=True)
class Network(ABC):
    """An architecture of MONAI's, by its name there: every choice is a field, and a call builds the network."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Number that each side of the input must be a multiple of."""

    @property
    def deepest(self) -> int:
        """Least number of voxels at the deepest level: 2 where a norm is over the voxels of an image, else 1."""
        return 1

    def options(self, grid: tuple[int, ...]) -> dict[str, Any]:
        """MONAI's options by name, without dims and channels: by default the fields."""
        return asdict(self)

    def __call__(self, dims: int, channels: int, classes: int, grid: tuple[int, ...]) -> nn.Module:
        """The network with random weights.

        Args:
            dims: number of spatial axes, 2 or 3.
            channels: of the input.
            classes: channels of the output.
            grid: spatial shape of the input; () where it may vary.
        """
        from monai.networks import nets

        channel_options = {"spatial_dims": dims, "in_channels": channels, "out_channels": classes}
        net: nn.Module = getattr(nets, type(self).__name__)(**channel_options, **self.options(grid))
        return net


@register(
    "SegResNet",
    kind="network",
    bounds={"init_filters": _COUNT, "blocks_down": _COUNT, "blocks_up": _COUNT, "dropout": "[0, 1)"},
)
@dataclass(frozen=True)
class SegResNet(Network):
    """Residual encoder and a thin decoder (Myronenko, arXiv 1810.11654, without the autoencoder).

    Attributes:
        init_filters: channels of the first level, a multiple of 8; each level below has twice as many.
        blocks_down: residual blocks of each encoder level, from the top.
        blocks_up: residual blocks of each decoder level, from the bottom; one entry less than `blocks_down`.
        dropout: probability in [0, 1) that a channel of the first level is zeroed in training.
    """

    init_filters: int = 8
    blocks_down: tuple[int, ...] = (1, 2, 2, 4)
    blocks_up: tuple[int, ...] = (1, 1, 1)
    dropout: float = 0.0

    @property
    def stride(self) -> int:
        return int(2 ** (len(self.blocks_down) - 1))

    def options(self, grid: tuple[int, ...]) -> dict[str, Any]:
        options = asdict(self)
        options["dropout_prob"] = options.pop("dropout") or None
        return options


@register("UNet", kind="network", bounds={"channels": _COUNT, "num_res_units": "[0, inf)", "dropout": "[0, 1)"})
@dataclass(frozen=True)
class UNet(Network):
    """U-Net with residual units.

    Attributes:
        channels: channels of each level, from the top; 2 levels or more.
        num_res_units: convolutions in each residual unit; 0: one plain convolution.
        norm: "instance" or "batch", or another norm of MONAI's.
        dropout: probability in [0, 1) that a channel is zeroed in training.
    """

    channels: tuple[int, ...] = (16, 32, 64, 128)
    num_res_units: int = 2
    norm: str = "instance"
    dropout: float = 0.0

    @property
    def stride(self) -> int:
        return int(2 ** (len(self.channels) - 1))

    @property
    def deepest(self) -> int:
        return 2 if self.norm.lower() == "instance" else 1

    def options(self, grid: tuple[int, ...]) -> dict[str, Any]:
        return asdict(self) | {"strides": (2,) * (len(self.channels) - 1)}


@register("DynUNet", kind="network", bounds={"filters": _COUNT, "kernel_size": _COUNT, "strides": _COUNT})
@dataclass(frozen=True)
class DynUNet(Network):
    """The U-Net of nnU-Net, without deep supervision. All tuples have one entry per level, from the top.

    Attributes:
        filters: channels.
        kernel_size: sides of the convolutions, in voxels; odd.
        strides: factors by which a level's grid is coarser than the one above; 1 for the first.
        res_block: whether blocks are residual.
    """

    deepest = 2

    filters: tuple[int, ...] = (16, 32, 64, 128)
    kernel_size: tuple[int, ...] = (3, 3, 3, 3)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    res_block: bool = False

    @property
    def stride(self) -> int:
        return prod(self.strides)

    def options(self, grid: tuple[int, ...]) -> dict[str, Any]:
        return asdict(self) | {"upsample_kernel_size": self.strides[1:]}


@register(
    "UNETR",
    kind="network",
    bounds={"feature_size": _COUNT, "hidden_size": _COUNT, "mlp_dim": _COUNT, "num_heads": _COUNT},
)
@dataclass(frozen=True)
class UNETR(Network):
    """Transformer encoder on 16-voxel patches, U-Net decoder (Hatamizadeh et al., arXiv 2103.10504).

    Attributes:
        feature_size: channels of the decoder's top level.
        hidden_size: length of a patch's embedding, a multiple of `num_heads`.
        mlp_dim: width of the hidden layer of each transformer block.
        num_heads: attention heads of each transformer block.
    """

    stride = 16

    feature_size: int = 16
    hidden_size: int = 768
    mlp_dim: int = 3072
    num_heads: int = 12

    def options(self, grid: tuple[int, ...]) -> dict[str, Any]:
        if not grid:
            raise InputError(
                "expected the grid of UNETR, which is part of its weights, got none; give window=(96, 96, 96) or size"
            )
        return asdict(self) | {"img_size": grid}


@register("SwinUNETR", kind="network", bounds={"feature_size": _COUNT, "depths": _COUNT, "num_heads": _COUNT})
@dataclass(frozen=True)
class SwinUNETR(Network):
    """Shifted-window transformer encoder, U-Net decoder (Hatamizadeh et al., arXiv 2201.01266).

    Attributes:
        feature_size: channels of the top level, a multiple of 12; each level below has twice as many.
        depths: transformer blocks of each of the 4 stages.
        num_heads: attention heads of each of the 4 stages.
    """

    stride = 32
    deepest = 2

    feature_size: int = 24
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)


_DEFAULT = SegResNet()


@register("monai", kind="model", bounds={"overlap": "[0, 1)"})
def monai(
    task: Task,
    net: Network = _DEFAULT,
    *,
    dims: int = 3,
    window: tuple[int, ...] = (),
    overlap: float = 0.5,
    importance: str = "gaussian",
    mirror: tuple[int, ...] = (),
    size: tuple[int, ...] = (),
) -> SegModel:
    """A network of MONAI (UNETR, SwinUNETR, DynUNet, SegResNet, UNet), attacked through windows in 3-D.

    Args:
        net: the architecture with its options.
        dims: 2 for slices, 3 for scans.
        window: sides of the sliding windows, in voxels; (): the network gets the whole image.
        overlap: of neighbouring windows, as a fraction of their size in [0, 1).
        importance: weight of a window's voxels: "gaussian" or "constant".
        mirror: spatial axes, from 0, along which inputs are also mirrored; the mean of all copies is taken.
        size: grid that the image is resized to, in voxels; (): the scan's own grid.

    Raises:
        InputError: the options do not fit each other, or MONAI refuses them.
    """
    if dims not in (2, 3):
        raise InputError(f"expected dims=2 or dims=3, got {dims}; write dims=3 for scans")
    for name, grid in (("window", window), ("size", size)):
        if grid and (len(grid) != dims or any(type(n) is not int or n < 1 or n % net.stride for n in grid)):
            raise InputError(
                f"expected {name} of {dims} sides that are multiples of {net.stride} for {spec(net)}, got {grid}; "
                "change one of them"
            )
        if grid and prod(n // net.stride for n in grid) < net.deepest:
            raise InputError(
                f"expected {name} with a side above {net.stride} for {spec(net)}, whose deepest level has else one "
                f"voxel to normalise over, got {grid}; write {2 * net.stride} or more for one of them"
            )
    kinds = (TypeError, ValueError, AssertionError, RuntimeError)
    with refusing(f"a network that MONAI can build of {spec(net)}", "change its options", kinds):
        network = net(dims, task.channels, len(task.classes), window or size)
    if dims == 2:
        network.to(memory_format=torch.channels_last)
    return SegModel(
        with_windows(network, dims, window, overlap, importance, mirror),
        task,
        size=size or None,
        stride=1 if window else net.stride,
        dims=dims,
    )


def with_windows(
    net: nn.Module,
    dims: int,
    window: tuple[int, ...],
    overlap: float,
    importance: str,
    mirror: Flip,
    from_end: Flip = (),
) -> nn.Module:
    """The network behind sliding windows, mirrored copies, both or neither; see `monai` and `SlidingWindow`."""
    if window:
        if len(window) != dims:
            raise InputError(f"expected window of {dims} sides for dims={dims}, got {window}; change one of them")
        return SlidingWindow(net, window, overlap=overlap, importance=importance, mirror=mirror, from_end=from_end)
    return MirrorAverage(net, mirror, dims) if mirror else net
