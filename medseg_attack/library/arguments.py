"""Arguments of a wrong type: refused in a sentence before anything is done with them."""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import numpy as np
import pandas as pd

from medseg_attack.errors import InputError
from medseg_attack.registry.foreign import foreign_errors_named

P = ParamSpec("P")
R = TypeVar("R")

_PLAIN: dict[Any, Any] = {
    bool: bool | np.bool_,
    int: Integral,
    float: Real,
    str: str,
    Path: Path,
    None: type(None),
    type(None): type(None),
    pd.DataFrame: pd.DataFrame,
}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which refuses arguments of a wrong type: numbers, texts, tables and sequences of these.

    What somebody else's part raises in it, such as an attack of the caller's own, is the cause of a sentence.

    Tensors, models and attacks are looked at by the function, which knows what shape they must have.

    Raises:
        InputError: from the function, if an argument is not of the type of its parameter, or such a part fails.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            parameter = signature.parameters[name]
            for each in value if parameter.kind is parameter.VAR_POSITIONAL else [value]:
                if not _fits(each, parameter.annotation):
                    raise InputError(
                        f"expected {_words(parameter.annotation)} as {name} of {function.__name__}, got "
                        f"{_got(each)}; see help({function.__name__})"
                    )
        with foreign_errors_named():
            return function(*args, **kwargs)

    return call


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value may be of a type; a type that is not plain is the function's own affair."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is Sequence or origin is tuple:
        return isinstance(value, Sequence) and all(_fits(each, parts[0]) for each in value)
    return isinstance(value, _PLAIN.get(kind, kind if dataclasses.is_dataclass(kind) else object))


def _words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, parts))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin is Sequence or origin is tuple:
        return f"a sequence of {_words(parts[0])}"
    return "None" if kind is type(None) else str(kind.__name__)


def _got(value: Any) -> str:
    return f"{value!r:.40}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
