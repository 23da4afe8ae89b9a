"""Parts of somebody else's: their errors in a sentence, what they get, and whose fault a wrong result is.

Such a part is registered by code outside of this package, as a user's own attack, metric or format is. No torch.
"""

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any, TypeVar

from medseg_attack.errors import InputError, is_of_others, is_out_of_memory, raised
from medseg_attack.registry.parts import walk
from medseg_attack.registry.table import Entry, entries, entry_of, known_as

T = TypeVar("T")

_PACKAGE = __name__.partition(".")[0]


@contextmanager
def foreign_errors_named(what: str = "") -> Iterator[None]:
    """A scope in which an error of somebody else's code, or a call of `sys.exit` in it, becomes a sentence.

    The sentence names the part, the error, and the file and line of that code; the error is its cause. Sentences pass
    as they are, and so do an interruption, too little memory, and what no such code had a hand in: a defect of this
    package.

    Args:
        what: what the sentence calls the code; by default the registered part that it belongs to.
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        origin = error.__cause__ if isinstance(error.__cause__, StopIteration) else error  # a generator wraps it
        part = _part(origin)
        if is_out_of_memory(error) or not (part or is_of_others(origin)):
            raise
        whole = f"{what or part} to come to its end" if what or part else "code that comes to its end"
        raise InputError(f"expected {whole}, got {raised(origin)}; repair that code") from error


def is_foreign(part: Any) -> bool:
    """Whether a part, or one that it is made of, is of somebody else's."""
    module = str(getattr(part if inspect.isfunction(part) else type(part), "__module__", ""))
    if entry_of(part) is None and module != "builtins" and not _is_own(module):
        return True
    return any(not _is_own(entry.make.__module__) for entry in map(entry_of, walk(part)) if entry)


def foreign_entries() -> tuple[Entry, ...]:
    """The entries of parts of somebody else's, which another process knows only if it gets them."""
    return tuple(entry for entry in entries.values() if not _is_own(entry.make.__module__))


def adopt(entry: Entry) -> None:
    """Registers a part that another process sent, unless its module did so when it was imported."""
    if entry.name not in entries:
        entries[entry.name], known_as[entry.make] = entry, entry.name


def lent(part: Any, tensor: T) -> T:
    """A tensor as a part may get it: a clone, if it is of somebody else's, whose code may change what it gets.

    Such code may do so past torch's count of changes, as `image.data` and `image.numpy()` do.
    """
    clone: T = tensor.clone() if is_foreign(part) else tensor  # type: ignore[attr-defined]
    return clone


def at_fault(part: Any, sentence: str) -> Exception:
    """The error of a part that broke its contract, to be raised: of this package's own it is a defect."""
    return InputError(sentence) if is_foreign(part) else RuntimeError(sentence)


def part_name(part: Any) -> str:
    """The name of a part in a sentence, such as "the goal my_goal"."""
    entry = entry_of(part)
    return f"the {entry.kind} {entry.name}" if entry else type(part).__name__


def require_like(part: Any, name: str, expected: Any, got: Any) -> None:
    """Refuses what a part returned in the place of a tensor, if it is none of the same shape, type and device.

    Raises:
        RuntimeError: it is not; an InputError, if the part is of somebody else's.
    """
    kinds = type(got), type(expected)
    is_tensor = issubclass(*kinds) or issubclass(*reversed(kinds))
    if not is_tensor or any(getattr(got, fact) != getattr(expected, fact) for fact in ("shape", "dtype", "device")):
        raise at_fault(
            part,
            f"expected {name} from {part_name(part)} as {words_of(expected)}, got {words_of(got)}; repair that code",
        )


def words_of(value: Any) -> str:
    """A value in words: the shape and type of an array, or the type of anything else."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    kind = type(value).__name__
    named = f"an {kind}" if kind[:1] in "aeiouAEIOU" else f"a {kind}"
    if shape is None or dtype is None:
        return named
    device = getattr(value, "device", "cpu")
    return f"{named} {tuple(shape)} in {dtype}" + ("" if str(device) == "cpu" else f" on {device}")


def _part(error: BaseException) -> str:
    """The name of the innermost registered part whose code raised an error; "" of none."""
    for frame in reversed([frame for frame, _ in traceback.walk_tb(error.__traceback__)]):
        entry = entry_of(frame.f_locals.get("self")) or _entry_of_code(frame.f_code)
        if entry is not None and not _is_own(entry.make.__module__):
            return f"the {entry.kind} {entry.name}"
    return ""


def _entry_of_code(code: CodeType) -> Entry | None:
    """The registered function of that code."""
    return next((entry for entry in entries.values() if getattr(entry.make, "__code__", None) is code), None)


def _is_own(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE
