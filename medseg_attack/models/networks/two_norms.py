"""Networks with two batch norms in place of each: one for clean images, one for perturbed ones."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medseg_attack.errors import InputError
from medseg_attack.models.networks.smp import unet_small
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import register
from medseg_attack.types import Task

_perturbed: ContextVar[bool] = ContextVar("perturbed", default=False)


@contextmanager
def adversarial_norms() -> Iterator[None]:
    """A scope in which networks with two norms take the one that was trained on perturbed images."""
    token = _perturbed.set(True)
    try:
        yield
    finally:
        _perturbed.reset(token)


class TwoNorms(nn.Module):
    """Two batch norms that begin alike; the clean one answers outside of `adversarial_norms`."""

    knowing_attack = "both_norms"
    contained = ("clean", "adversarial")

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.clean, self.adversarial = norm, copy.deepcopy(norm)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.adversarial(x) if _perturbed.get() else self.clean(x)
        return out


def split_norms(net: nn.Module) -> int:
    """Puts two norms in place of every batch norm of a network, and returns how many there were."""
    if isinstance(net, TwoNorms):
        return 1
    n = 0
    for name, layer in net.named_children():
        if isinstance(layer, _BatchNorm):
            net.add_module(name, TwoNorms(layer))
            n += 1
        else:
            n += split_norms(layer)
    return n


@register("two_norms", kind="model")
def two_norms(task: Task, model: Any = unet_small) -> SegModel:
    """A network whose batch norms are doubled, as the defence dual_norm trains it; the clean ones answer.

    Args:
        model: a registered model with batch norms.

    Raises:
        InputError: the network has no batch norm.
    """
    built: SegModel = model(task)
    if not split_norms(built):
        raise InputError("expected a network with batch norms for two_norms, got one without; take unet_small")
    return built
