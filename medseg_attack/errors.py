"""Errors that are raised when the input, not the code, is at fault, and the words they are made of."""

import difflib
import errno
import importlib
import os
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsInt

MOST = 20  # names that a sentence can hold
DRAWS = "[0, 4294967295]"  # numbers of draws: what seeds the generators of every library
FULL = (errno.ENOSPC, errno.EDQUOT)  # the system's numbers for a full disk or quota


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

    Args:
        bounds: the least that a field may be, the interval that it lies in, or the words that it is one of.

    Raises:
        InputError: a field is not; the sentence proposes its default.
    """
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
    """An error of somebody else's code in words, with the file and line that raised it."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f" in {Path(frame.tb_frame.f_code.co_filename).name}, line {frame.tb_lineno}" if frame else ""
    text = one_line(error)
    return f"{type(error).__name__}{text and ': '}{text}{place}"


def is_of_others(error: BaseException) -> bool:
    """Whether somebody else's code raised an error: a file that is neither this package nor a library, or any in the
    backward pass of a network, where a library raises it as well, such as for an operation without a derivative.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames:
        return False
    is_own = [str(frame.f_globals.get("__name__")).partition(".")[0] == __name__.partition(".")[0] for frame in frames]
    passes = [n for n, frame in enumerate(frames) if frame.f_code.co_name == "_engine_run_backward"]
    if passes and not any(is_own[passes[-1] :]):
        return len(frames) > passes[-1] + 1 or "derivative for" in str(error)
    path = Path(frames[-1].f_code.co_filename)
    libraries = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    is_library = any(path.is_relative_to(folder) for folder in libraries)
    return path.is_file() and not is_library and not is_own[-1]


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
