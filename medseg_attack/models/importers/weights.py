"""Weights in files of others: safetensors, or what torch.save wrote, never unpickled beyond tensors."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from medseg_attack.errors import InputError, first_line
from medseg_attack.models.checkpoints import load_tensors

NESTED = ("state_dict", "model_state_dict", "network_weights", "model", "net")  # under which trainers keep them


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; a trainer's checkpoint is searched for them, `module.` is taken off.

    Raises:
        InputError: it is absent, broken, holds objects that only unpickling would bring back, or no weights.
    """
    if not path.is_file():
        raise InputError(f"expected weights in {path}, got no such file; check the path")
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(
            f"expected tensors alone in {path}, got objects that would have to be unpickled, which may run anything; "
            "save model.state_dict() with safetensors.torch.save_file"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"expected weights in {path}, got '{first_line(error)}'; copy the file again") from error
    for name in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(
            f"expected tensors by name in {path}, got something else; save model.state_dict() of the network"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def load_into(net: nn.Module, path: Path) -> None:
    """Loads the weights of a file into `net`, all of them.

    Raises:
        InputError: the file is broken, or of another network.
    """
    try:
        net.load_state_dict(read_weights(path), strict=True)
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise InputError(
            f"expected the weights of this network in {path}, got '{told[:300]}'; check weights="
        ) from error
