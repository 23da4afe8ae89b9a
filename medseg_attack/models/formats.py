"""Networks as others keep them in a file: Python, TorchScript, torch.export, ONNX."""

import importlib
import importlib.util
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_attack.errors import InputError, first_line, plural, raised
from medseg_attack.types import Task


def from_python(text: str, task: Task) -> Any:
    """What the factory of `file.py:factory` or `package.module:factory` returns; it is given the task if it takes one.

    Raises:
        InputError: there is no such factory, or it fails.
    """
    place, _, name = text.rpartition(":")
    make: Any = _module(place, text)
    for part in name.split("."):
        if not hasattr(make, part):
            raise InputError(f"expected {name!r} in {place}, got no such name there; check own({text!r})")
        make = getattr(make, part)
    return _called(make, text, task)


def _module(place: str, text: str) -> Any:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place)
        if not path.is_file():
            raise InputError(f"expected a Python file at {path}, got none; check own({text!r})")
        found = importlib.util.spec_from_file_location(f"medattack_own_{path.stem}", path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module  # dataclasses of the file look themselves up there
        found.loader.exec_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # another's code may raise anything
        raise InputError(f"expected to import {place} for own({text!r}), got {raised(error)}; repair it") from error
    return module


def _called(make: Callable[..., Any], text: str, task: Task) -> Any:
    if not callable(make):
        raise InputError(f"expected a function in own({text!r}), got a {type(make).__name__}; name what makes the net")
    try:
        takes = "task" in inspect.signature(make).parameters
        return make(task=task) if takes else make()
    except (Exception, SystemExit) as error:  # another's code may raise anything
        raise InputError(f"expected own({text!r}) to make a network, got {raised(error)}; repair it") from error


def torchscript(path: Path) -> nn.Module:
    """The network of a TorchScript file.

    Raises:
        InputError: it is broken, or of a torch that this one does not read.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit")
            net: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        todo = "copy it again, or save it again with this torch"
        if "constants.pkl" in str(error):  # of TorchScript alone
            todo = "if torch.save wrote it, give it beside its Python: own('file.py:factory', weights=...)"
        raise InputError(
            f"expected a TorchScript file that torch {torch.__version__} reads in {path}, got '{first_line(error)}'; "
            f"{todo}"
        ) from error
    return net


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
