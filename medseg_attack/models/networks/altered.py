"""Networks of which layers of one kind are exchanged: activations that saturate, pooling that averages.

They are trained like any other: `medattack train --model "bounded_relu(unet_small, bound=2.0)"`.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from medseg_attack.errors import InputError, require_within
from medseg_attack.models.networks.smp import unet, unet_small
from medseg_attack.models.saturation import BoundedReLU, Sign
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import register
from medseg_attack.types import Task

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Mish)


@register("bounded_relu", kind="model")
def bounded_relu(task: Task, model: Any = unet_small, *, bound: float = 1.0) -> SegModel:
    """A network whose activations are `min(max(x, 0), bound)` (Zantedeschi et al., arXiv 1707.06728).

    Their gradient is 0 on either side, which hides the network's; `bpda(attack=pgd)` takes that of softplus.

    Args:
        model: a registered network.
        bound: largest value of an activation, above 0.

    Raises:
        InputError: the network has no activation that could be exchanged, or `bound` is not above 0.
    """
    require_within("bound", bound, "(0, inf)", 1.0)
    return altered(task, model, _ACTIVATIONS, lambda layer: BoundedReLU(bound), "activations for bounded_relu")


@register("sign_activation", kind="model")
def sign_activation(task: Task, model: Any = unet_small) -> SegModel:
    """A network whose activations are -1 or 1 (Yang et al. 2022), trained by straight-through gradients.

    The paper trains without gradients, which takes too long for one decision per pixel. An attack's gradient is 0;
    `bpda(attack=pgd)` takes that of tanh.

    Args:
        model: a registered network.

    Raises:
        InputError: the network has no activation that could be exchanged.
    """
    return altered(task, model, _ACTIVATIONS, lambda layer: Sign(), "activations for sign_activation")


@register("average_pooling", kind="model")
def average_pooling(task: Task, model: Any = unet) -> SegModel:
    """A network that takes the mean of each window where it took the maximum (Taghanaki et al., arXiv 1807.02905).

    Args:
        model: a registered network with max pooling, such as unet or smp(encoder='resnet18').

    Raises:
        InputError: the network has no max pooling.
    """
    return altered(task, model, (nn.MaxPool2d, nn.MaxPool3d), _averaging, "max pooling for average_pooling")


def altered(
    task: Task, model: Any, kinds: tuple[type[nn.Module], ...], change: Callable[[Any], nn.Module], what: str
) -> SegModel:
    """A network with other layers in place of those of some kinds.

    Args:
        model: a registered network.
        change: the layer that takes the place of one.
        what: names the layers and who needs them, for the error.

    Raises:
        InputError: the network has no such layer.
    """
    built: SegModel = model(task)
    if not _exchange(built, kinds, change):
        raise InputError(f"expected a network with {what}, got one without; take another network")
    return built


def _exchange(net: nn.Module, kinds: tuple[type[nn.Module], ...], change: Callable[[Any], nn.Module]) -> int:
    """Exchanges layers at any depth and returns how many there were."""
    n = 0
    for name, layer in list(net.named_children()):
        n += _exchange(layer, kinds, change)
        if isinstance(layer, kinds):
            net.add_module(name, change(layer))
            n += 1
    return n


def _averaging(layer: Any) -> nn.Module:
    make = nn.AvgPool2d if isinstance(layer, nn.MaxPool2d) else nn.AvgPool3d
    return make(layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, count_include_pad=False)
