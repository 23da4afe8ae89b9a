"""The one tensor of a network's output: an entry of a dict, a part of a tuple, a level of deep supervision."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from medseg_attack.errors import InputError, is_out_of_memory, raised

OPTIONS = "give the dims=, channels= and size= that it was trained with"


class PickOutput(nn.Module):
    """A network with one part of its output taken.

    Attributes:
        path: keys and positions, joined by dots: "out", "0", "logits.0". A position in a tensor that has one axis more
            than an image is a level of deep supervision, stacked behind the batch. "": the output itself.
        dims: number of spatial axes of that part, 2 or 3.
        todo: what to do about a network that fails.
    """

    def __init__(self, net: nn.Module, path: str, dims: int, todo: str = OPTIONS) -> None:
        super().__init__()
        self.net, self.path, self.dims, self.todo = net, path, dims, todo
        _keep_buffers()

    def forward(self, x: Tensor, *prompts: Tensor) -> Tensor:
        """The part, (b, k, *s).

        Args:
            prompts: further inputs of a promptable network.

        Raises:
            InputError: the network fails, its output has no such part, or it has several and none was named.
        """
        output = self._run(x, *prompts)
        for step in filter(None, self.path.split(".")):
            output = _part(output, step, self.path, self.dims)
        if isinstance(output, Tensor) and output.ndim == self.dims + 2:
            return output
        axes = "rows, columns" if self.dims == 2 else "slices, rows, columns"
        todo = "name the part that is meant with output="
        if isinstance(output, Tensor) and output.ndim <= 2:  # such as an age
            todo = f"{todo}, or attack numbers from Python (docs/python.md)"
        raise InputError(
            f"expected maps of shape (batch, classes, {axes}) from the network, got {describe(output)}; {todo}"
        )

    def _run(self, x: Tensor, *prompts: Tensor) -> Any:
        try:
            return self.net(x, *prompts)
        except (Exception, SystemExit) as error:  # another's code may raise anything
            if isinstance(error, InputError) or is_out_of_memory(error):
                raise
            reason = "".join(str(error).strip().splitlines()[-1:] if isinstance(error, RuntimeError) else [])
            todo = self.todo
            if re.search(r"Half|BFloat16|Double|dtype", reason):
                todo = "give the network in single precision: net.float()"
            raise InputError(
                f"expected an answer from the network to an input of shape {tuple(x.shape)}, got "
                f"'{reason or raised(error)}'; {todo}"
            ) from error


def _keep_buffers() -> None:
    """Lets compiled networks keep what a backward pass reads: several gradients may come of one forward pass."""
    if config := sys.modules.get("torch._functorch.config"):
        config.donated_buffer = False  # type: ignore[attr-defined]


def _part(output: Any, step: str, path: str, dims: int) -> Any:
    if isinstance(output, Mapping) and step in output:
        return output[step]
    if isinstance(output, Tensor):
        if step.isdecimal() and output.ndim == dims + 3 and int(step) < output.shape[1]:
            return output[:, int(step)]
    elif isinstance(output, Sequence) and step.isdecimal() and int(step) < len(output):
        return output[int(step)]
    elif isinstance(getattr(output, step, None), Tensor):  # an object with named results
        return getattr(output, step)
    raise InputError(
        f"expected {step!r} of output={path!r} in the network's answer, got {describe(output)}; name a part that it has"
    )


def describe(output: Any) -> str:
    """The kind and shape of a network's output, in words."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a dict with {', '.join(map(str, output)) or 'nothing'}"
    if isinstance(output, Sequence) and not isinstance(output, str):
        return f"{len(output)} parts: {', '.join(describe(part) for part in output[:4])}"
    return f"an object of type {type(output).__name__}"
