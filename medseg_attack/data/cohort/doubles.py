"""Names that must be different: two files for one thing are refused, not merged into one."""

import unicodedata
from collections.abc import Iterable
from typing import TypeVar

from medseg_attack.errors import InputError

T = TypeVar("T")


def canonical(name: str) -> str:
    """The name in one Unicode form: a Mac writes an accent as a character of its own, others do not."""
    return unicodedata.normalize("NFC", name)


def unique(pairs: Iterable[tuple[str, T]], what: str) -> dict[str, T]:
    """A dictionary of pairs whose names differ, also on disks that ignore case or the form of accents.

    Args:
        what: one thing of the kind, such as "mask".

    Raises:
        InputError: two names are the same; the sentence shows both values.
    """
    result: dict[str, T] = {}
    owners: dict[str, str] = {}
    for name, value in pairs:
        key = canonical(name)
        other = owners.setdefault(key.casefold(), key)
        if key in result or other != key:
            raise InputError(
                f"expected one {what} of each name, whatever its case, accents or ending, got {result[other]} and "
                f"{value}; take one away or rename it"
            )
        result[key] = value
    return result
