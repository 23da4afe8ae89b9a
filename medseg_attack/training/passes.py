"""Forward and backward passes of a training, counted on the model itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Passes:
    """Passes through a model, one for each batch."""

    forwards: int = 0
    backwards: int = 0

    def multiple(self, steps: int) -> float:
        """The cost as a multiple of as many plain optimiser steps, each of one forward and one backward pass."""
        return (self.forwards + self.backwards) / (2 * steps)

    def _forward(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.forwards += 1
        if output.requires_grad:
            output.register_hook(self._backward)  # type: ignore[no-untyped-call]

    def _backward(self, grad: Tensor) -> None:
        self.backwards += 1


@contextmanager
def counted(model: nn.Module) -> Iterator[Passes]:
    """A scope in which the passes through the model, and its bound copies, are counted."""
    passes = Passes()
    with model.register_forward_hook(passes._forward):
        yield passes
