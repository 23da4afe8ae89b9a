"""Networks whose deepest layers have few connections, of which a few channels hold most."""

import math
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.utils import parametrize

from medseg_attack.errors import DRAWS, InputError
from medseg_attack.models.networks.convolutions import CONVOLUTIONS
from medseg_attack.models.networks.smp import unet_small
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import register
from medseg_attack.types import Task


@register("scale_free", kind="model", bounds={"draw": DRAWS})
def scale_free(
    task: Task, model: Any = unet_small, *, density: float = 0.2, exponent: float = 3.0, draw: int = 0
) -> SegModel:
    """A network whose bottleneck is sparse, with scale-free connections (Kaviani & Sohn 2020).

    The convolutions with the most output channels keep a share of the pairs of channels that they connect. The number
    of connections of a channel follows a power law. What is kept is drawn once and does not change in training. The
    paper shows it against backdoors, with fully connected layers; there is no evidence of it against other attacks.

    Args:
        model: a registered network.
        density: share of the connections that are kept, above 0, at most 1; each channel keeps at least one.
        exponent: of the power law, above 2.
        draw: number of the draw of the connections, from 0 to 4294967295.

    Raises:
        InputError: the network has no convolution between several channels, or an option is out of range.
    """
    if not (0 < density <= 1 and 2 < exponent < math.inf):
        raise InputError(
            f"expected 0 < density <= 1 and exponent > 2 for scale_free, got {density:g} and {exponent:g}; write "
            "density=0.2, exponent=3.0"
        )
    built: SegModel = model(task)
    layers = [
        layer
        for layer in built.modules()
        if isinstance(layer, CONVOLUTIONS) and layer.groups == 1 and min(layer.weight.shape[:2]) > 1
    ]
    if not layers:
        raise InputError(
            "expected a network with convolutions between several channels for scale_free, got one without; take "
            "unet_small"
        )
    deepest = max(layer.out_channels for layer in layers)
    for place, layer in enumerate(layers):
        if layer.out_channels == deepest:
            kept = connections(layer.weight.shape[0], layer.weight.shape[1], density, exponent, (draw << 16) + place)
            parametrize.register_parametrization(
                layer, "weight", Sparse(kept, layer.weight.ndim).to(layer.weight.device)
            )
    return built


class Sparse(nn.Module):
    """Weights of a convolution that are 0 where two channels are not connected."""

    kept: Tensor

    def __init__(self, kept: Bool[Tensor, "o i"], ndim: int) -> None:
        super().__init__()
        self.register_buffer("kept", kept.view(*kept.shape, *(1,) * (ndim - 2)))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.kept


def connections(outside: int, inside: int, density: float, exponent: float, seed: int) -> Bool[Tensor, "o i"]:
    """Connections between two sets of channels, whose numbers per channel follow a power law.

    The static model of Goh et al. (PRL 87, 278701): channels are ranked at random, the one of rank i is chosen in
    proportion to `i ** (-1 / (exponent - 1))`, and pairs are drawn without replacement. Unlike growth by preferential
    attachment it has any exponent, and as many connections as `density` says. Each channel has one at least.
    """
    rng = torch.Generator("cpu").manual_seed(seed)
    with torch.device("cpu"):  # also while parameters are counted on a device without memory
        ranks = [1.0 + torch.randperm(n, generator=rng) for n in (outside, inside)]
        rows, columns = (-rank.log() / (exponent - 1) for rank in ranks)
        uniform = torch.rand(outside, inside, generator=rng, dtype=torch.float64).clamp(min=1e-12)
        keys = rows[:, None] + columns - (-uniform.log()).log()  # the largest are a draw without replacement
        keys.view(-1)[keys.argmax(0) * inside + torch.arange(inside)] += 1e9
        keys.view(-1)[keys.argmax(1) + inside * torch.arange(outside)] += 1e9
        n = max(round(density * outside * inside), int((keys > 1e8).sum()))
        kept = torch.zeros(outside * inside, dtype=torch.bool)
        kept[keys.flatten().topk(n).indices] = True
        return kept.view(outside, inside)
