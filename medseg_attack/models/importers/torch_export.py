"""Networks in torch.export files."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg_attack.errors import InputError, first_line
from medseg_attack.models.importers.onnx import _in_parts


class Exported(nn.Module):
    """A program of torch.export, which knows no training mode and perhaps one size of batch.

    Attributes:
        at_once: None: any number.
    """

    def __init__(self, net: nn.Module, at_once: int | None) -> None:
        super().__init__()
        self.net, self.at_once = net, at_once

    def forward(self, x: Tensor) -> Any:
        return _in_parts(self.net, x, self.at_once)

    def train(self, mode: bool = True) -> "Exported":
        self.training = mode
        return self


def exported(path: Path, trust: bool) -> nn.Module:
    """The network of a torch.export file.

    torch unpickles its sample inputs, some of its weights and its constants, evaluates its shapes as Python and loads
    libraries that it brings: nothing short of the whole file could be looked through beforehand.

    Raises:
        InputError: it is not trusted, broken, or of a torch that this one does not read.
    """
    if not trust:
        raise InputError(
            f"expected trust=True beside {path}, got none; reading a torch.export file runs whatever it holds: write "
            "it if you trust who made the file, or give the network as TorchScript or ONNX"
        )
    try:
        with _quiet():
            program = torch.export.load(path)
        inputs = program.graph_signature.user_inputs
        nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name == inputs[0]]
        first = nodes[0].meta["val"].shape[0]
        return Exported(program.module(), first if isinstance(first, int) else None)
    except Exception as error:  # the reader raises whatever its JSON, zip and schema parsers do
        raise InputError(
            f"expected a torch.export file that torch {torch.__version__} reads in {path}, got '{first_line(error)}'; "
            "copy it again, or export it again with this torch"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """A scope without torch's log, where it shows a traceback before it raises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
