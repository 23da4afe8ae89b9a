"""Networks in torch.export files."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg_attack.errors import InputError, first_line, refusing
from medseg_attack.models.importers.onnx import in_batches
from medseg_attack.storage.archives import require_sound


class Exported(nn.Module):
    """A program of torch.export, which has no training mode and perhaps a fixed size of batch.

    Attributes:
        batch_size: number of cases that the program takes; None: any number.
    """

    def __init__(self, net: nn.Module, batch_size: int | None) -> None:
        super().__init__()
        self.net, self.batch_size = net, batch_size

    def forward(self, x: Tensor) -> Any:
        return in_batches(self.net, x, self.batch_size)

    def train(self, mode: bool = True) -> "Exported":
        self.training = mode
        return self


def exported(path: Path, trust: bool) -> nn.Module:
    """The network of a torch.export file.

    torch unpickles the file's sample inputs, some of its weights and its constants, evaluates its shapes as Python and
    loads libraries that it contains. No check of a part of the file could make that safe.

    Args:
        trust: whether the file may run whatever it holds.

    Raises:
        InputError: the file is not trusted, is broken, or is of a torch version that this one does not read.
    """
    if not trust:
        raise InputError(
            f"expected trust=True beside {path}, got none; reading a torch.export file runs whatever it holds: write "
            "it if you trust who made the file, or give the network as TorchScript or ONNX"
        )
    readable = f"a torch.export file that torch {torch.__version__} reads in {path}"
    with refusing(readable, "copy it again, or export it again with this torch", words=first_line):
        require_sound(path)
        with _quiet():
            program = torch.export.load(path)
        inputs = program.graph_signature.user_inputs
        nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name == inputs[0]]
        batch_size = nodes[0].meta["val"].shape[0]
        return Exported(program.module(), batch_size if isinstance(batch_size, int) else None)


@contextmanager
def _quiet() -> Iterator[None]:
    """A scope without torch's log, which shows a traceback before torch raises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
