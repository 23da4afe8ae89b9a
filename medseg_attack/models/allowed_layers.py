"""Classes that a file of others names: it is data, and must not choose what else is imported or called."""

import importlib
from typing import Any

from torch import nn


def allowed_layer(path: str, package: str) -> type[nn.Module] | None:
    """The network or layer of that dotted path, None if it is no such class of the package or a module below it."""
    module, _, name = path.rpartition(".")
    if module != package and not module.startswith(f"{package}."):
        return None
    try:
        found: Any = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None
