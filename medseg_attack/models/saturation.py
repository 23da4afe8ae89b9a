"""Activations whose own gradient is 0 over much of their range, attacked as if it were not (BPDA)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn
from torch.nn import functional

from medseg_attack.numerics.samples import straight_through
from medseg_attack.types import Backward

_backward: ContextVar[Backward] = ContextVar("backward", default="own")


@contextmanager
def backward_through(backward: Backward) -> Iterator[None]:
    """A scope in which activations have their own gradient, or that of their smooth stand-in."""
    token = _backward.set(backward)
    try:
        yield
    finally:
        _backward.reset(token)


class Saturated(nn.Module, ABC):
    """An activation that is constant over much of its range."""

    @abstractmethod
    def exact(self, x: Tensor) -> Tensor:
        """The activation."""

    @abstractmethod
    def smooth(self, x: Tensor) -> Tensor:
        """A function that rises wherever the activation does, or would."""

    def forward(self, x: Tensor) -> Tensor:
        return self.exact(x) if _backward.get() == "own" else straight_through(self.exact(x), self.smooth(x))


class BoundedReLU(Saturated):
    """The activation `min(max(x, 0), bound)`."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def exact(self, x: Tensor) -> Tensor:
        return x.clamp(0, self.bound)

    def smooth(self, x: Tensor) -> Tensor:
        return functional.softplus(x)


class Sign(Saturated):
    """The activation `sign(x)`, which is trained through the gradient of `x` cut to [-1, 1]."""

    def exact(self, x: Tensor) -> Tensor:
        return straight_through(x.sign(), functional.hardtanh(x)) if self.training else x.sign()

    def smooth(self, x: Tensor) -> Tensor:
        return x.tanh()
