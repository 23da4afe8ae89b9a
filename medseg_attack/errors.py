"""What is raised when the input, not the code, is at fault."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import SupportsInt

MOST = 20  # names that a sentence can hold


class InputError(ValueError):
    """Bad input in one sentence: *expected ..., got ...; do ...*, naming the file, case or field.

    The command line prints the sentence without a traceback and exits with 2; everything else that is raised
    is a defect of this package and keeps its traceback.
    """


class NotFiniteError(InputError):
    """A network answered NaN or infinity."""


def absent(what: str, path: Path) -> InputError:
    """Of a file that was found once and is there no more."""
    return InputError(f"expected {what} at {path}, got no file; put it back, or prepare the data again")


def plural(n: SupportsInt, thing: str) -> str:
    """A number of things in words.

    >>> plural(1, "patient"), plural(2, "patient")
    ('1 patient', '2 patients')
    """
    return f"{n} {thing}" if int(n) == 1 else f"{n} {thing}s"


def nearest(word: str, known: Iterable[str]) -> str:
    """The tail of a look-up error: what the user may have meant, and what there is.

    >>> nearest("pgdd", ["fgsm", "pgd"])
    'did you mean pgd? There is: fgsm, pgd'
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    start = f"did you mean {' or '.join(close)}? There" if close else "there"
    if len(known) > MOST:
        return f"{start} are {len(known)}, among them {', '.join(known[:: len(known) // 5][:5])}"
    return f"{start} is: {', '.join(known) or 'nothing'}"


def first_line(error: BaseException) -> str:
    """Of what a library says; without torch's place in its own code, and its guess at what became of a zip file.

    >>> first_line(RuntimeError("[enforce fail at reader.cc:229] . Too new. This is an internal miniz error. If you"))
    'Too new.'
    """
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    line = re.sub(r"^\[enforce fail at \S+\] \. ", "", line)
    return re.split(" This is an internal miniz error| Please check the warnings above", line)[0]


def raised(error: BaseException) -> str:
    """An error of another's code, with the place in the file that raised it."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f" in {Path(frame.tb_frame.f_code.co_filename).name}, line {frame.tb_lineno}" if frame else ""
    told = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{told and ': '}{told}{where}"
