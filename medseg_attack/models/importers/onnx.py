"""Networks in ONNX files: they have outputs and no gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_attack.errors import InputError, first_line, plural


class Onnx(nn.Module):
    """A network that onnxruntime runs: it has outputs and no gradients.

    Attributes:
        shape: of the input, (b, c, ...); an entry is a number only where the file fixes it.
        names: of the outputs; several are returned as a dict.
    """

    black_box = True

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session, self.input = session, session.get_inputs()[0]
        self.shape = [*self.input.shape, None, None]  # a file may leave the shape out
        self.names = [output.name for output in session.get_outputs()]

    def forward(self, x: Tensor) -> Any:
        batch_size = self.shape[0]
        outputs = in_batches(self._outputs, x, batch_size if isinstance(batch_size, int) else None)
        return outputs[0] if len(outputs) == 1 else dict(zip(self.names, outputs, strict=True))

    def _outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        channels = self.shape[1]
        if isinstance(channels, int) and channels != x.shape[1]:
            grey = f", or channels={channels} to repeat a grey scan" if channels > 1 else ""
            raise InputError(
                f"expected an image of {plural(channels, 'channel')} for the ONNX network, got {x.shape[1]}; give the "
                f"data that it was trained for{grey}"
            )
        dtype = np.float16 if self.input.type == "tensor(float16)" else np.float32
        try:
            outputs = self.session.run(None, {self.input.name: x.detach().cpu().numpy().astype(dtype)})
        except Exception as error:  # its errors have no common type
            raise InputError(
                f"expected the ONNX network to take an image of shape {tuple(x.shape)}, got '{first_line(error)}'; "
                f"it was made for {self.input.shape}: give window= or size="
            ) from error
        return tuple(_NoGradient.apply(x, torch.from_numpy(output).to(x)) for output in outputs)


class _NoGradient(torch.autograd.Function):
    """An output that was computed from `x` outside of torch; asking for its gradient is refused."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor) -> Tensor:
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        raise InputError(
            "expected an attack without gradients for a network in ONNX, got one that asks for them; use a black-box "
            "attack or noise, or give the network in PyTorch"
        )


def onnx(path: Path) -> nn.Module:
    """The network of an ONNX file.

    Raises:
        InputError: the file is broken, or onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"expected onnxruntime to run {path}, got none; install it: pip install 'medseg-attack[onnx]'"
        ) from error
    if not path.is_file():
        raise InputError(f"expected an ONNX file at {path}, got none; name the file")
    try:
        return Onnx(onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers()))
    except Exception as error:  # its errors have no common type
        raise InputError(f"expected an ONNX network in {path}, got '{first_line(error)}'; export it again") from error


def in_batches(net: Callable[[Tensor], Any], x: Tensor, batch_size: int | None) -> Any:
    """The output of `net` on `x`, which is run in batches of `batch_size`; None: any size will do."""
    if batch_size is None or len(x) == batch_size:
        return net(x)
    if len(x) % batch_size:
        raise InputError(
            f"expected a number of cases that {batch_size} divides, as the network was exported for, got {len(x)}; "
            "export it with a batch of 1 or of any size"
        )
    parts = [net(part) for part in torch.split(x, batch_size)]
    if isinstance(parts[0], tuple | list):
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if isinstance(parts[0], dict):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(parts)
