"""What a network returns, brought to one tensor: an entry of a dict, a part of a tuple, a level of deep supervision."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medseg_attack.errors import InputError, raised


class PickOutput(nn.Module):
    """A network of whose answer one part is taken.

    Attributes:
        path: keys and positions, joined by dots: "out", "0", "logits.0". A position in a tensor that has one axis more
            than an image is a level of deep supervision, stacked behind the batch. "": the answer itself.
    """

    def __init__(self, net: nn.Module, path: str, dims: int) -> None:
        super().__init__()
        self.net, self.path, self.dims = net, path, dims

    @property
    def black_box(self) -> bool:
        return bool(getattr(self.net, "black_box", False))

    def forward(self, x: Tensor) -> Tensor:
        """Raises InputError if the answer has no such part, or more than one and none was named."""
        answer = self._asked(x)
        for step in filter(None, self.path.split(".")):
            answer = _part(answer, step, self.path, self.dims)
        if isinstance(answer, Tensor) and answer.ndim == self.dims + 2:
            return answer
        axes = "rows, columns" if self.dims == 2 else "slices, rows, columns"
        raise InputError(
            f"expected maps of shape (batch, classes, {axes}) "
            f"from the network, got {described(answer)}; name the part that is meant with output="
        )

    def _asked(self, x: Tensor) -> Any:
        try:
            return self.net(x)
        except (torch.OutOfMemoryError, InputError):
            raise
        except Exception as error:  # another's code may raise anything
            told = str(error).strip().splitlines()[-1:] if isinstance(error, RuntimeError) else []
            raise InputError(
                f"expected an answer from the network to an input of shape {tuple(x.shape)}, got "
                f"'{''.join(told) or raised(error)}'; check its dims=, channels= and size="
            ) from error


def _part(answer: Any, step: str, path: str, dims: int) -> Any:
    if isinstance(answer, Mapping) and step in answer:
        return answer[step]
    if isinstance(answer, Tensor):
        if step.isdigit() and answer.ndim == dims + 3 and int(step) < answer.shape[1]:
            return answer[:, int(step)]
    elif isinstance(answer, Sequence) and step.isdigit() and int(step) < len(answer):
        return answer[int(step)]
    elif isinstance(getattr(answer, step, None), Tensor):  # an object with named results
        return getattr(answer, step)
    raise InputError(
        f"expected {step!r} of output={path!r} in the network's answer, got {described(answer)}; change it"
    )


def described(answer: Any) -> str:
    """What a network returned, in words."""
    if isinstance(answer, Tensor):
        return f"a tensor of shape {tuple(answer.shape)}"
    if isinstance(answer, Mapping):
        return f"a dict with {', '.join(map(str, answer)) or 'nothing'}"
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        return f"{len(answer)} parts: {', '.join(described(part) for part in answer[:4])}"
    return f"an object of type {type(answer).__name__}"
