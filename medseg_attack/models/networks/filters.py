"""Networks with a filter on the features of each residual unit: feature denoising and context encoding."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from medseg_attack.models.networks.altered import altered
from medseg_attack.models.networks.smp import unet_small
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import register
from medseg_attack.types import Task

CODEWORDS = 32
KEYS = 16  # positions along each axis that every pixel is compared with


@register("feature_denoising", kind="model")
def feature_denoising(task: Task, model: Any = unet_small) -> SegModel:
    """A network with a non-local filter after each residual unit (Xie et al., arXiv 1812.03411).

    The filter has the form of dot products without embedding, and begins as the identity. The paper finds gains on top
    of adversarial training, and none without.

    Args:
        model: a registered network of residual units, such as unet_small or smp(encoder='resnet18').

    Raises:
        InputError: the network has no residual units.
    """
    return _filtered(task, model, Denoising, "feature_denoising")


@register("nlce", kind="model")
def nlce(task: Task, model: Any = unet_small) -> SegModel:
    """A network with non-local context encoding after each residual unit (He et al., arXiv 1904.12181).

    Each pixel is mixed with those that are like it, and the channels are weighed by how the features lie around 32
    learned codewords. Each pixel is compared with the means of at most 16 windows along each axis.

    Args:
        model: a registered network of residual units, such as unet_small or smp(encoder='resnet18').

    Raises:
        InputError: the network has no residual units.
    """
    return _filtered(task, model, ContextEncoding, "nlce")


class Denoising(nn.Module):
    """The layer `x + norm(conv(mean_j (x_i . x_j) x_j))`, the identity before training."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.conv = (nn.Conv2d, nn.Conv3d)[dims - 2](channels, channels, 1)
        self.norm = (nn.BatchNorm2d, nn.BatchNorm3d)[dims - 2](channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        flat = x.flatten(2)
        likeness = flat @ flat.transpose(1, 2) / flat.shape[2]  # (b, c, c): as cheap as a convolution
        return x + self.norm(self.conv((likeness @ flat).view_as(x)))  # type: ignore[no-any-return]


class ContextEncoding(nn.Module):
    """A non-local block whose channels are weighed by the residuals to learned codewords."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        self.query, self.key, self.value = (conv(channels, inner, 1) for _ in range(3))
        self.out = conv(inner, channels, 1)
        self.codewords = nn.Parameter(torch.empty(CODEWORDS, channels).uniform_(-1, 1) / channels**0.5)
        self.scales = nn.Parameter(torch.ones(CODEWORDS))
        self.norm = nn.LayerNorm(channels)
        self.gate = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        few = self._means(x)
        query, key, value = self.query(x).flatten(2), self.key(few).flatten(2), self.value(few).flatten(2)
        attention = torch.softmax(query.transpose(1, 2) @ key / query.shape[1] ** 0.5, 2)
        mixed = (value @ attention.transpose(1, 2)).view(len(x), -1, *x.shape[2:])
        x = x + self.out(mixed)
        weights: Tensor = torch.sigmoid(self.gate(self._encoded(x)))
        return x * weights.view(*weights.shape, *(1 for _ in x.shape[2:]))

    def _means(self, x: Tensor) -> Tensor:
        """The image in windows, at most `KEYS` of them along each axis; a divisor, so that all are alike."""
        sides = [-(-n // KEYS) for n in x.shape[2:]]
        pool = functional.avg_pool2d if x.ndim == 4 else functional.avg_pool3d
        means: Tensor = pool(x, sides, ceil_mode=True, count_include_pad=False)
        return means

    def _encoded(self, x: Tensor) -> Float[Tensor, "b c"]:
        """The residuals of all pixels to the codewords, each weighed by how near it is, added up."""
        points = x.flatten(2).transpose(1, 2)  # (b, n, c)
        squares = points.square().sum(2, keepdim=True) + self.codewords.square().sum(1) - 2 * points @ self.codewords.T
        shares = torch.softmax(-self.scales * squares, 2)  # (b, n, k)
        residuals = shares.transpose(1, 2) @ points - shares.sum(1)[..., None] * self.codewords
        encoded: Tensor = torch.relu(self.norm(residuals / points.shape[1])).sum(1)
        return encoded


class Filtered(nn.Sequential):
    """A residual unit and the filter behind it, if it has one."""

    contained = ("0",)


def _filtered(task: Task, model: Any, make: Any, name: str) -> SegModel:
    """A network with a filter after each residual unit but the one that answers."""
    from monai.networks.blocks.convolutions import ResidualUnit
    from torchvision.models.resnet import BasicBlock, Bottleneck

    def filtered(layer: Any) -> nn.Module:
        if not isinstance(layer, ResidualUnit):
            last = layer.conv3 if isinstance(layer, Bottleneck) else layer.conv2
            return Filtered(layer, make(last.out_channels, 2))
        channels = int(layer.out_channels)
        return Filtered(layer, *([make(channels, layer.spatial_dims)] if channels != len(task.classes) else []))

    return altered(task, model, (ResidualUnit, BasicBlock, Bottleneck), filtered, f"residual units for {name}")
