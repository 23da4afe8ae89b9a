"""Networks whose every weight is read from a file next."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

DRAWS = (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default)


class BlankParameters(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode in which parameters are 0 where they would be drawn, which for a VGG-13 takes longer than to read them.

    Buffers and other tensors are drawn as ever: they need not be in a file of weights.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in DRAWS and isinstance(args[0], nn.Parameter):
            return args[0].zero_()
        return func(*args, **(kwargs or {}))
