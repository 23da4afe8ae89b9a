"""Guards for class names in files of others: such a file is data and must not choose what is imported or called."""

import importlib
from typing import Any

from torch import nn


def allowed_layer(path: str, package: str) -> type[nn.Module] | None:
    """The network or layer at a dotted path inside `package`; None if the path leads to anything else."""
    module, _, name = path.rpartition(".")
    if module != package and not module.startswith(f"{package}."):
        return None
    try:
        layer: Any = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return layer if isinstance(layer, type) and issubclass(layer, nn.Module) else None
