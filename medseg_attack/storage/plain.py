"""Values as JSON can hold them: numbers of Python, and null for what is no number."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class _Scalar(Protocol):
    """A number of numpy's or torch's."""

    def item(self) -> float: ...


def plain(value: Any) -> Any:
    """The value with NaN and infinity as None, and numpy's and torch's numbers as Python's.

    >>> plain({"a": (1.0, float("nan"))})
    {'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return None
    return plain(value.item()) if isinstance(value, _Scalar) else value
