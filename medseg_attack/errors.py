"""What is raised when the input, not the code, is at fault."""

import difflib
from collections.abc import Iterable
from typing import SupportsInt

MOST = 20  # names that a sentence can hold


class InputError(ValueError):
    """Bad input in one sentence: *expected ..., got ...; do ...*, naming the file, case or field.

    The command line prints the sentence without a traceback and exits with 2; everything else that is raised
    is a defect of this package and keeps its traceback.
    """


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
