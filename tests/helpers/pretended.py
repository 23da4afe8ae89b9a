"""A device that this machine does not have: tensors that say they live elsewhere, and refuse those that do not.

torch calls the device `meta`, whose tensors it lets autograd walk through without a driver. Unlike tensors of `meta`
these hold numbers, in the memory of the CPU, and every operation computes them there.

What it sees: an operation of tensors of both places, random numbers of a generator of the CPU, an array of a tensor
that lives elsewhere, an answer that is waited for. What it cannot see: kernels that CUDA lacks or rounds otherwise, and
streams.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
# of these the index or the source may come from the CPU, on CUDA too: it is copied, and the copy is waited for
MIXING = ("aten::copy_", "aten::_index_put_impl_", "aten::index_put", "aten::index_put_", "aten::index")

# marks that kernels below this one do not look at
LAZY = {torch.ops.aten._conj.default: torch.ops.aten._conj_physical, torch.ops.aten._neg_view.default: torch.neg}


class Elsewhere(Tensor):
    """A tensor that says it lives on the pretended device."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "Elsewhere":
        facts = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, **facts, device=DEVICE)

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.values!r})"

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(options.get("device", DEVICE))

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("expected a tensor of the CPU to make an array of, got one that lives elsewhere")
        return self.detach().cpu().numpy()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.numpy()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} was called on a tensor of the pretended device outside of its scope")


class PretendedDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A scope in which `DEVICE` is there.

    Attributes:
        waits: numbers and tensors that went from one place to the other, each of which a GPU would be waited for.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits = 0
        self._literals = _Literals()

    def __enter__(self) -> Self:
        self._literals.__enter__()  # type: ignore[no-untyped-call]
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._literals.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        is_elsewhere = any(isinstance(each, Elsewhere) for each in tensors)
        target = kwargs.get("device")
        if not is_elsewhere and (target is None or torch.device(target) != DEVICE):
            return func(*args, **kwargs)
        name = func._schema.name
        if name in ("aten::_to_copy", "aten::to"):
            was_elsewhere, is_elsewhere = is_elsewhere, target is None or torch.device(target) == DEVICE
            self.waits += was_elsewhere != is_elsewhere
        elif name == "aten::_local_scalar_dense" or name == "aten::equal":
            self.waits += 1
        elif not tensors or name.startswith(("aten::new_", "aten::empty", "aten::zeros", "aten::ones", "aten::full")):
            is_elsewhere = target is None or torch.device(target) == DEVICE
        self.waits += _n_of_cpu(name, tensors)
        if is_elsewhere and kwargs.get("generator") is not None:
            raise RuntimeError(f"{name} got a generator of the CPU for a tensor that lives elsewhere")
        if func in LAZY and is_elsewhere:
            return Elsewhere(LAZY[func](args[0].values))
        here = {} if target is None else {"device": torch.device("cpu")}
        there = [each for each in tensors if isinstance(each, Elsewhere)]
        result = func(*_mapped(_inside, args), **_mapped(_inside, kwargs) | here)
        if name == "aten::_to_copy" and any(result is each.values for each in there):
            result = result.clone()
        if not is_elsewhere:
            return result
        return return_and_correct_aliasing(func, args, kwargs, _mapped(_outside, result))


class _Literals(TorchFunctionMode):
    """Numbers of Python that torch moves to the pretended device without a call of its dispatcher, and so loses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE:
            del kwargs["device"]
            return func(*args, **kwargs).to(DEVICE)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(
                torch.tensor(part, dtype=None if part else torch.long) if isinstance(part, list) else part
                for part in index
            )
            args = (args[0], index, *args[2:])
        return func(*args, **kwargs)


def _n_of_cpu(name: str, tensors: Sequence[Tensor]) -> int:
    """How many tensors come from the CPU to one elsewhere, which CUDA refuses but for single numbers and indices."""
    here = [each for each in tensors if not isinstance(each, Elsewhere) and each.ndim > 0]
    if not here or len(here) == len(tensors) or name.endswith("_to_copy"):
        return 0
    if name in MIXING:
        return len(here)
    shapes = [(tuple(each.shape), "elsewhere" if isinstance(each, Elsewhere) else "cpu") for each in tensors]
    raise RuntimeError(f"{name} got tensors of two devices: {shapes}")


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    return tree_map(function, tree)


def _inside(value: Any) -> Any:
    return value.values if isinstance(value, Elsewhere) else value


def _outside(value: Any) -> Any:
    return Elsewhere(value) if isinstance(value, Tensor) and not isinstance(value, Elsewhere) else value
