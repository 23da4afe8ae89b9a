"""Networks in TorchScript files."""

import warnings
from pathlib import Path

import torch
from torch import nn

from medseg_attack.errors import InputError, first_line
from medseg_attack.storage.archives import require_sound


def torchscript(path: Path) -> nn.Module:
    """The network of a TorchScript file.

    Raises:
        InputError: the file is broken, or of a torch version that this one does not read.
    """
    try:
        require_sound(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit")
            net: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # a damaged file makes its reader raise anything
        todo = "copy it again, or save it again with this torch"
        if "constants.pkl" in str(error):  # a part that only TorchScript files have
            todo = "if torch.save wrote it, give it beside its Python: own('file.py:factory', weights=...)"
        raise InputError(
            f"expected a TorchScript file that torch {torch.__version__} reads in {path}, got '{first_line(error)}'; "
            f"{todo}"
        ) from error
    return net
