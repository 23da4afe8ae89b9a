"""Weights in files of others: safetensors, or torch.save's, of which only tensors are unpickled."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from medseg_attack.errors import InputError, first_line, one_line
from medseg_attack.models.checkpoints import load_tensors

NESTED = ("state_dict", "model_state_dict", "network_weights", "model", "net")  # keys of weights in trainers' files


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, without the prefix `module.`; a trainer's checkpoint is searched for them.

    Raises:
        InputError: the file is absent or broken, holds objects that only unpickling could read, or no weights.
    """
    if not path.is_file():
        raise InputError(f"expected weights in {path}, got no such file; name the file")
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
        InputError: the file is broken, or its weights are those of another network.
    """
    try:
        net.load_state_dict(read_weights(path), strict=True)
    except RuntimeError as error:
        raise InputError(
            f"expected the weights of this network in {path}, got '{one_line(error)}'; name the file that was saved "
            "from it"
        ) from error
