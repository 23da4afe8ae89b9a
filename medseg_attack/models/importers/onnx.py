"""Networks in ONNX files: they have outputs and no gradients."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_attack.errors import InputError, first_line, package, plural, refusing
from medseg_attack.storage.paths import beside, real_path


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
        takes = f"the ONNX network to take an image of shape {tuple(x.shape)}"
        with refusing(takes, f"it was made for {self.input.shape}: give window= or size=", words=first_line):
            outputs = self.session.run(None, {self.input.name: x.detach().cpu().numpy().astype(dtype)})
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
    onnxruntime = package("onnxruntime", f"run {path}", "onnx")
    if not path.is_file():
        raise InputError(f"expected an ONNX file at {path}, got none; name another: {beside(path)}")
    external_files(path)
    with refusing(f"an ONNX network in {path}", "export it again", words=first_line):
        return Onnx(onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers()))


def external_files(path: Path) -> list[Path]:
    """The files with weights that an ONNX file names.

    Raises:
        InputError: the file is broken, one of them is absent or lies outside of the file's folder, or the package onnx
            is not installed.
    """
    library = package("onnx", f"read {path}", "onnx")
    with refusing(f"an ONNX network in {path}", "export it again", words=first_line):
        model = library.load(path, load_external_data=False)
    names = sorted(
        {entry.value for tensor in _tensors(model) for entry in tensor.external_data if entry.key == "location"}
    )
    files = [path.parent / name for name in names]
    for name, file in zip(names, files, strict=True):
        if not file.is_file() or not real_path(file).is_relative_to(real_path(path.parent)):
            raise InputError(
                f"expected the weights of {path} in a file beside it, got {name!r}; copy it there, or export it again"
            )
    return files


def _tensors(message: Any) -> Iterator[Any]:
    """The tensors in a protobuf message, at any depth."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(part)


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
