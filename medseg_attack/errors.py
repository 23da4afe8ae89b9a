"""Errors that are raised when the input, not the code, is at fault, and the words they are made of."""

import difflib
import errno
import importlib
import math
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, SupportsInt

MOST = 20  # names that a sentence can hold
DRAWS = "[0, 4294967295]"  # numbers of draws: what seeds the generators of every library
FULL = (errno.ENOSPC, errno.EDQUOT)  # the system's numbers for a full disk or quota
_PACKAGE = __name__.partition(".")[0]


class InputError(ValueError):
    """Bad input in one sentence: *expected ..., got ...; do ...*, naming the file, case or field.

    The command line prints the sentence without a traceback and exits with 2; everything else that is raised
    is a defect of this package and keeps its traceback. Further arguments are lines that stand below the sentence.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class NotFiniteError(InputError):
    """A network answered NaN or infinity."""


class NoGradientError(InputError):
    """A gradient was asked for of a network whose output has none by the image.

    Args:
        network: what the sentence calls it.
    """

    def __init__(self, network: str = "the network") -> None:
        super().__init__(
            f"expected a gradient of the output of {network} by the image, got none (MA002); remove detach() and "
            "no_grad() from the model, or say black_box = True in its class and take an attack without gradients, such "
            "as square"
        )


def require(instance: object, /, **bounds: float | str | tuple[str, ...]) -> None:
    """Refuses an instance with a field that is not what it may be: `require(attack, steps=1, share="(0, 1]")`.

    No number of the instance may be NaN or infinite, whether it has a bound or not.

    Args:
        bounds: the least that a field may be, the interval that it lies in, or the words that it is one of.

    Raises:
        InputError: a field is not; the sentence proposes its default.
    """
    for field, value in vars(instance).items():
        if not is_finite(value):
            usual = getattr(type(instance), field, None)
            such = "" if usual is None else f", such as {field}={usual}"
            raise InputError(f"expected a finite number for {field}, got {value}; write one{such}")
    for field, bound in bounds.items():
        value = getattr(instance, field)
        if isinstance(bound, tuple):
            if value not in bound:
                raise InputError(f"expected {field} to be one of {', '.join(bound)}, got {value!r}; write one of them")
        elif isinstance(bound, str):
            require_within(field, value, bound, getattr(type(instance), field))
        elif value < bound:
            raise InputError(f"expected {field} >= {bound}, got {value}; write {field}={bound} or more")


def require_within(field: str, value: float, interval: str, usual: float) -> None:
    """Refuses a number that does not lie in an interval.

    Raises:
        InputError: it does not; the sentence proposes the usual one.
    """
    if not _is_within(value, interval):
        raise InputError(f"expected {field} in {interval}, got {value}; write such as {field}={usual:.4g}")


def is_finite(value: Any) -> bool:
    """Whether a value, and each in a tuple, is no number or a finite one.

    >>> is_finite(3), is_finite("nan"), is_finite((1.0, math.nan)), is_finite(math.inf)
    (True, True, False, False)
    """
    if isinstance(value, tuple):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _is_within(value: float, interval: str) -> bool:
    """Whether a number lies in an interval; a bracket includes its end, a parenthesis does not.

    >>> _is_within(1, "(0, 1]"), _is_within(0, "(0, 1]"), _is_within(5, "[0, inf)")
    (True, False, True)
    """
    low, high = map(float, interval[1:-1].split(","))
    return low < value < high or (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")


def absent(content: str, path: Path) -> InputError:
    """The error for a file that is not there, or no more; `content` is "a PNG"."""
    return InputError(f"expected {content} at {path}, got no file; put it back, or name another")


def plural(n: SupportsInt, noun: str) -> str:
    """A number with its noun, which gets an "s" unless the number is 1.

    >>> plural(1, "patient"), plural(2, "patient")
    ('1 patient', '2 patients')
    """
    return f"{n} {noun}" if int(n) == 1 else f"{n} {noun}s"


def duration(seconds: float) -> str:
    """A span of time in its two largest units; "?" where it is not known.

    >>> [duration(seconds) for seconds in (3.2, 125, 7300)]
    ['3 s', '2 min 5 s', '2 h 1 min']
    """
    if math.isnan(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first names and how many more there are.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def close_matches(word: str, known: Iterable[str]) -> list[str]:
    """At most two known words that a misspelt one may stand for, the likeliest first.

    A letter that is added, missing, wrong or swapped with its neighbour counts as one slip. A word of which a letter
    was typed twice goes first; one whose letters were swapped stands alone otherwise.

    >>> close_matches("pdg", ["pdgd", "pgd", "dag"]), close_matches("pgdd", ["pdgd", "pgd"])
    (['pgd'], ['pgd', 'pdgd'])
    """
    slips = {name: _slips(word, name) for name in known}
    ratio = {name: difflib.SequenceMatcher(None, word, name).ratio() for name in slips}
    close = [name for name in slips if ratio[name] >= 0.6]
    single = re.sub(r"(.)\1", r"\1", word)
    swapped = [name for name in close if slips[name] == 1 and sorted(name) == sorted(word)]
    close.sort(key=lambda name: (slips[name], name != single, -ratio[name], name))
    return (close if single in close else swapped or close)[:2]


def _slips(word: str, other: str) -> int:
    """The Damerau-Levenshtein distance of two words, in which swapped neighbours count as one (optimal alignment)."""
    rows = [list(range(len(other) + 1))]
    for i, letter in enumerate(word, 1):
        row = [i]
        for j, other_letter in enumerate(other, 1):
            steps = [rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != other_letter)]
            if i > 1 and j > 1 and (letter, word[i - 2]) == (other[j - 2], other_letter):
                steps.append(rows[-2][j - 2] + 1)
            row.append(min(steps))
        rows.append(row)
    return rows[-1][-1]


def nearest(word: str, known: Iterable[str]) -> str:
    """The tail of a look-up error: the known words that the user may have meant, and those there are.

    >>> nearest("pgdd", ["fgsm", "pgd"])
    'did you mean pgd? There is: fgsm, pgd'
    """
    known = sorted(known)
    close = close_matches(word, known)
    start = f"did you mean {' or '.join(close)}? There" if close else "there"
    if len(known) > MOST:
        return f"{start} are {len(known)}, among them {', '.join(known[:: len(known) // 5][:5])}"
    return f"{start} is: {', '.join(known) or 'nothing'}"


def first_line(error: BaseException) -> str:
    """The first line of a library's error, without torch's line number and its guesses about zip files.

    >>> first_line(RuntimeError("[enforce fail at reader.cc:229] . Too new. This is an internal miniz error. If you"))
    'Too new.'
    """
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    line = re.sub(r"^\[enforce fail at \S+\] \. ", "", line)
    return re.split(" This is an internal miniz error| Please check the warnings above", line)[0]


def reason(error: BaseException) -> str:
    """An error in words: the system's own where the system refused, without Python's numbers and brackets.

    >>> reason(PermissionError(13, "Permission denied", "scan.nii")), reason(ValueError("a  b"))
    ('Permission denied', 'a b')
    """
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    if isinstance(error, RecursionError):
        return "one that is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"bytes that are no {error.encoding.upper()} text, from byte {error.start} on"
    return one_line(error) or type(error).__name__


def raised(error: BaseException) -> str:
    """An error of somebody else's code in words, with the file and line of that code, or where a library raised it."""
    frames = list(traceback.walk_tb(error.__traceback__))
    place = next((each for each in reversed(frames) if is_foreign_frame(each[0])), frames[-1] if frames else None)
    where = f" in {Path(place[0].f_code.co_filename).name}, line {place[1]}" if place else ""
    if place and place is not frames[-1] and _module_of(frames[-1][0]) == _PACKAGE:
        where += f" (from {Path(frames[-1][0].f_code.co_filename).name}, line {frames[-1][1]})"
    text = one_line(error)
    return f"{type(error).__name__}{text and ': '}{text}{where}"


def is_of_others(error: BaseException) -> bool:
    """Whether somebody else's code raised an error, or called what did, since the scope that caught it.

    That is code of neither this package nor a library; or the backward pass of a network, where a library raises it as
    well, such as for an operation without a derivative.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(map(is_foreign_frame, frames)):
        return True
    passes = [n for n, frame in enumerate(frames) if frame.f_code.co_name == "_engine_run_backward"]
    if passes and not any(_module_of(frame) == _PACKAGE for frame in frames[passes[-1] :]):
        return len(frames) > passes[-1] + 1 or "derivative for" in str(error)
    return False


def is_foreign_frame(frame: FrameType) -> bool:
    """Whether the code of a frame is neither of this package nor of a library."""
    module = _module_of(frame)
    if module == _PACKAGE or module in sys.stdlib_module_names - {"__main__"}:
        return False
    file = frame.f_code.co_filename
    if not Path(file).is_file():  # a cell of a notebook, or code that was generated for a module
        file = frame.f_globals.get("__file__") or vars(sys.modules.get(module, sys)).get("__file__") or ""
    libraries = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    return not any(Path(file).is_relative_to(folder) for folder in libraries)


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice: torch's own of a GPU, and the texts of its CPU allocators."""
    texts = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or any(text in str(error) for text in texts))
    )


def one_line(error: BaseException) -> str:
    """At most 300 characters of an error's text on one line."""
    return " ".join(str(error).split())[:300]


@contextmanager
def refusing(
    expected: str,
    todo: str,
    kinds: type[BaseException] | tuple[type[BaseException], ...] = Exception,
    *,
    words: Callable[[BaseException], str] = reason,
    passing: tuple[type[BaseException], ...] = (InputError,),
) -> Iterator[None]:
    """A scope in which what a library raises becomes a sentence: *expected `expected`, got '...'; `todo`*.

    Args:
        kinds: errors that do; libraries raise many types.
        words: an error in words; those of `raised` stand without quotes.
        passing: errors that pass as they are.
    """
    try:
        yield
    except passing:
        raise
    except kinds as error:
        got = raised(error) if words is raised else f"'{words(error)}'"
        raise InputError(f"expected {expected}, got {got}; {todo}") from error


def package(name: str, purpose: str, extra: str) -> Any:
    """A package that is installed with an extra of this one.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        install = f"pip install 'medseg-attack[{extra}]'"
        raise InputError(f"expected {name} to {purpose}, got none; install it: {install}") from error
