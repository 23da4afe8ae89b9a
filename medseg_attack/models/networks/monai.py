"""MONAI's networks in 2-D and 3-D, over the whole image or behind sliding windows.

The library is imported inside the functions: it costs seconds, and every look-up in the registry imports this file.
"""

from dataclasses import dataclass
from math import prod
from typing import Protocol, runtime_checkable

from torch import nn

from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel
from medseg_attack.models.sliding_window import Flip, MirrorAverage, SlidingWindow
from medseg_attack.registry import register, spec
from medseg_attack.types import Task


@runtime_checkable
class Network(Protocol):
    """An architecture whose every choice is a field."""

    @property
    def stride(self) -> int:
        """What the sides of its input must be multiples of."""
        ...

    @property
    def deepest(self) -> int:
        """How many voxels its deepest level must have: 2 where a norm is over the voxels of an image."""
        ...

    def __call__(self, dims: int, channels: int, classes: int, grid: tuple[int, ...]) -> nn.Module:
        """The network with random weights; `grid` is what it will see at a time, () if that differs."""
        ...


@register("SegResNet", kind="network")
@dataclass(frozen=True)
class SegResNet:
    """Residual encoder and a thin decoder (Myronenko, arXiv 1810.11654, without the autoencoder)."""

    init_filters: int = 8
    blocks_down: tuple[int, ...] = (1, 2, 2, 4)
    blocks_up: tuple[int, ...] = (1, 1, 1)
    dropout: float = 0.0

    @property
    def stride(self) -> int:
        return int(2 ** (len(self.blocks_down) - 1))

    @property
    def deepest(self) -> int:
        return 1

    def __call__(self, dims: int, channels: int, classes: int, grid: tuple[int, ...]) -> nn.Module:
        from monai.networks.nets.segresnet import SegResNet as Net

        made: nn.Module = Net(
            dims,
            self.init_filters,
            channels,
            classes,
            blocks_down=self.blocks_down,
            blocks_up=self.blocks_up,
            dropout_prob=self.dropout or None,
        )
        return made


@register("UNet", kind="network")
@dataclass(frozen=True)
class UNet:
    """U-Net with residual units."""

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

    def __call__(self, dims: int, channels: int, classes: int, grid: tuple[int, ...]) -> nn.Module:
        from monai.networks.nets.unet import UNet as Net

        down = (2,) * (len(self.channels) - 1)
        made: nn.Module = Net(
            dims,
            channels,
            classes,
            self.channels,
            down,
            num_res_units=self.num_res_units,
            norm=self.norm,
            dropout=self.dropout,
        )
        return made


@register("DynUNet", kind="network")
@dataclass(frozen=True)
class DynUNet:
    """The U-Net of nnU-Net, without deep supervision; `kernel_size`, `strides` of each level."""

    filters: tuple[int, ...] = (16, 32, 64, 128)
    kernel_size: tuple[int, ...] = (3, 3, 3, 3)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    res_block: bool = False

    @property
    def stride(self) -> int:
        return prod(self.strides)

    @property
    def deepest(self) -> int:
        return 2

    def __call__(self, dims: int, channels: int, classes: int, grid: tuple[int, ...]) -> nn.Module:
        from monai.networks.nets.dynunet import DynUNet as Net

        made: nn.Module = Net(
            dims,
            channels,
            classes,
            self.kernel_size,
            self.strides,
            self.strides[1:],
            filters=self.filters,
            res_block=self.res_block,
        )
        return made


@register("UNETR", kind="network")
@dataclass(frozen=True)
class UNETR:
    """Transformer encoder on 16-voxel patches, U-Net decoder (Hatamizadeh et al., arXiv 2103.10504)."""

    feature_size: int = 16
    hidden_size: int = 768
    mlp_dim: int = 3072
    num_heads: int = 12

    @property
    def stride(self) -> int:
        return 16

    @property
    def deepest(self) -> int:
        return 1

    def __call__(self, dims: int, channels: int, classes: int, grid: tuple[int, ...]) -> nn.Module:
        from monai.networks.nets.unetr import UNETR as Net  # noqa: N811

        if not grid:
            raise InputError(
                "expected the grid of UNETR, which is part of its weights, got none; give window=(96, 96, 96) or size"
            )
        made: nn.Module = Net(
            channels,
            classes,
            grid,
            self.feature_size,
            self.hidden_size,
            self.mlp_dim,
            self.num_heads,
            spatial_dims=dims,
        )
        return made


@register("SwinUNETR", kind="network")
@dataclass(frozen=True)
class SwinUNETR:
    """Shifted-window transformer encoder, U-Net decoder (Hatamizadeh et al., arXiv 2201.01266)."""

    feature_size: int = 24
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)

    @property
    def stride(self) -> int:
        return 32

    @property
    def deepest(self) -> int:
        return 2

    def __call__(self, dims: int, channels: int, classes: int, grid: tuple[int, ...]) -> nn.Module:
        from monai.networks.nets.swin_unetr import SwinUNETR as Net

        made: nn.Module = Net(
            channels,
            classes,
            depths=self.depths,
            num_heads=self.num_heads,
            feature_size=self.feature_size,
            spatial_dims=dims,
        )
        return made


_DEFAULT = SegResNet()


@register("monai", kind="model")
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
    """UNETR, SwinUNETR, DynUNet, SegResNet or UNet, e.g. monai(SegResNet, window=(64, 64, 64)); `dims` 2 or 3."""
    if dims not in (2, 3):
        raise InputError(f"expected dims=2 or dims=3, got {dims}; check the model")
    for name, grid in (("window", window), ("size", size)):
        if grid and (len(grid) != dims or any(type(n) is not int or n < 1 or n % net.stride for n in grid)):
            raise InputError(
                f"expected {name} of {dims} sides that are multiples of {net.stride} for {spec(net)}, got {grid}; "
                "change one of them"
            )
        if grid and prod(n // net.stride for n in grid) < net.deepest:
            raise InputError(
                f"expected {name} with a side above {net.stride} for {spec(net)}, whose deepest level has else one "
                f"voxel to normalise over, got {grid}; enlarge it"
            )
    try:
        made = net(dims, task.channels, len(task.classes), window or size)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise InputError(f"expected a network that MONAI can build, got '{error}' for {spec(net)}; check it") from error
    return SegModel(
        seen_through(made, dims, window, overlap, importance, mirror),
        task,
        size=size or None,
        stride=1 if window else net.stride,
        dims=dims,
    )


def seen_through(
    net: nn.Module, dims: int, window: tuple[int, ...], overlap: float, importance: str, mirror: Flip
) -> nn.Module:
    """`net` behind sliding windows, mirrored copies, both or neither."""
    if window:
        if len(window) != dims:
            raise InputError(f"expected window of {dims} sides for dims={dims}, got {window}; change one of them")
        return SlidingWindow(net, window, overlap=overlap, importance=importance, mirror=mirror)
    return MirrorAverage(net, mirror, dims) if mirror else net
