"""Networks in ONNX files: answers, and no gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_attack.errors import InputError, first_line, plural


class Onnx(nn.Module):
    """An ONNX file in onnxruntime: answers, and no gradients."""

    black_box = True

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session, self.input = session, session.get_inputs()[0]
        self.shape = [*self.input.shape, None, None]  # which a file need not say
        self.names = [output.name for output in session.get_outputs()]

    def forward(self, x: Tensor) -> Any:
        first = self.shape[0]
        at_once = first if isinstance(first, int) else None
        found = _in_parts(self._answers, x, at_once)
        return found[0] if len(found) == 1 else dict(zip(self.names, found, strict=True))

    def _answers(self, x: Tensor) -> tuple[Tensor, ...]:
        channels = self.shape[1]
        if isinstance(channels, int) and channels != x.shape[1]:
            grey = f", or channels={channels} to repeat a grey scan" if channels > 1 else ""
            raise InputError(
                f"expected an image of {plural(channels, 'channel')} for the ONNX network, got {x.shape[1]}; give the "
                f"data that it was trained for{grey}"
            )
        dtype = np.float16 if self.input.type == "tensor(float16)" else np.float32
        seen = x.detach().cpu().numpy().astype(dtype)
        try:
            answers = self.session.run(None, {self.input.name: seen})
        except Exception as error:  # its errors have no common type
            raise InputError(
                f"expected the ONNX network to take an image of shape {tuple(x.shape)}, got '{first_line(error)}'; "
                f"it was made for {self.input.shape}: give window= or size="
            ) from error
        return tuple(_NoGradient.apply(x, torch.from_numpy(answer).to(x)) for answer in answers)


class _NoGradient(torch.autograd.Function):
    """What was computed elsewhere from `x`; asking for its gradient is refused."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, answer: Tensor) -> Tensor:
        return answer

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        raise InputError(
            "expected an attack without gradients for a network in ONNX, got one that asks for them; use a black-box "
            "attack or noise, or give the network in PyTorch"
        )


def onnx(path: Path) -> nn.Module:
    """The network of an ONNX file.

    Raises:
        InputError: it is broken, or onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"expected onnxruntime to run {path}, got none; install it: pip install 'medseg-attack[onnx]'"
        ) from error
    if not path.is_file():
        raise InputError(f"expected an ONNX file at {path}, got none; check the path")
    try:
        return Onnx(onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers()))
    except Exception as error:  # its errors have no common type
        raise InputError(f"expected an ONNX network in {path}, got '{first_line(error)}'; export it again") from error


def _in_parts(net: Callable[[Tensor], Any], x: Tensor, at_once: int | None) -> Any:
    """`net` on a batch, `at_once` cases at a time."""
    if at_once is None or len(x) == at_once:
        return net(x)
    if len(x) % at_once:
        raise InputError(
            f"expected a number of cases that {at_once} divides, as the network was exported for, got {len(x)}; "
            "export it with a batch of 1 or of any size"
        )
    parts = [net(part) for part in torch.split(x, at_once)]
    if isinstance(parts[0], tuple | list):
        return tuple(torch.cat(together) for together in zip(*parts, strict=True))
    if isinstance(parts[0], dict):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(parts)
