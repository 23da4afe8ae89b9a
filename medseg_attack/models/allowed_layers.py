"""Guards for names in files of others: such a file is data and must not choose what is imported or called."""

import importlib
from typing import Any

import numpy as np
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


def number_types() -> list[Any]:
    """The functions and types in pickles of numpy's scalars: they construct numbers, and nothing else."""
    import _codecs

    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = (np.float64, np.float32, np.float16, np.int64, np.int32, np.bool_)
    constructors: list[Any] = [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, _codecs.encode]
    return constructors + [type(np.dtype(kind)) for kind in kinds]
