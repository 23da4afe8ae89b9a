"""The convolutions of a network: which layers they are, the widest ones, and a scope that changes their inputs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
WITH_TRANSPOSED = (*CONVOLUTIONS, nn.ConvTranspose2d, nn.ConvTranspose3d)


def widest(net: nn.Module) -> list[nn.Module]:
    """The convolutions with the most output channels, in the order of the network's layers."""
    layers = [layer for layer in net.modules() if isinstance(layer, CONVOLUTIONS)]
    most = max((layer.out_channels for layer in layers), default=0)
    return [layer for layer in layers if layer.out_channels == most]


def has_convolutions(net: nn.Module) -> bool:
    """Whether a layer of the network is a convolution, or a transposed one."""
    return any(isinstance(layer, WITH_TRANSPOSED) for layer in net.modules())


@contextmanager
def changed_inputs(net: nn.Module, change: Callable[[nn.Module, Tensor], Tensor]) -> Iterator[None]:
    """A scope in which each convolution, also a transposed one, gets `change(layer, x)` in place of its input `x`."""
    with ExitStack() as hooks:
        for layer in net.modules():
            if isinstance(layer, WITH_TRANSPOSED):
                hook = layer.register_forward_pre_hook(lambda layer, args: (change(layer, args[0]), *args[1:]))
                hooks.enter_context(hook)
        yield
