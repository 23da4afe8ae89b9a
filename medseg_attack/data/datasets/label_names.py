"""Which labels of a scan become which class: `liver=Liver,kidney=Kidney*`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from medseg_attack.data.cohort.doubles import canonical
from medseg_attack.errors import InputError

_WORD = re.compile(r'\s*(?:"((?:[^"]|"")*)"\s*|([^",|=]*))')


@dataclass(frozen=True)
class LabelPattern:
    """A label's name, or a pattern of names.

    Attributes:
        text: the name; `*`, `?` and `[...]` are wildcards where no label is called so.
        literal: whether it is a name in any case, since it was written in quotes or stands alone.
    """

    text: str
    literal: bool = False

    def __str__(self) -> str:
        return f'"{self.text}"' if self.literal else self.text


LabelPatterns = Mapping[str, tuple[LabelPattern, ...]]


def parse(text: str) -> dict[str, tuple[LabelPattern, ...]]:
    """Class -> patterns of label names, in the order of the text; `|` separates patterns.

    A name in double quotes may hold any character; a double quote in it is written twice. A name alone is both the
    class and its label.

    >>> {name: [str(p) for p in patterns] for name, patterns in parse('liver=Liver,kidney=Kidney*|"a,b"').items()}
    {'liver': ['Liver'], 'kidney': ['Kidney*', '"a,b"']}
    >>> list(parse('GTV-1'))
    ['GTV-1']

    Raises:
        InputError: it is not of this form.
    """
    result: dict[str, tuple[LabelPattern, ...]] = {}
    place = 0
    while place < len(text):
        start = place
        name, _, place = _word(text, place)
        patterns = [LabelPattern(name, literal=True)]
        if text[place : place + 1] == "=":
            patterns = []
            while text[place : place + 1] in (("=",) if not patterns else ("|",)):
                pattern, literal, place = _word(text, place + 1)
                patterns.append(LabelPattern(pattern, literal))
        ends = place == len(text) or (text[place] == "," and text[place + 1 :].strip())
        if not ends or not name or name in result or not all(pattern.text for pattern in patterns):
            raise InputError(
                f"labels: expected CLASS=NAME with each class once, got {text[start:].strip()!r} in {text!r}; "
                "write for instance 'liver=Liver,kidney=Kidney*', and names with signs in double quotes: "
                "'gtv=\"GTV|boost\"'"
            )
        result[name] = tuple(patterns)
        place += 1
    return result


def _word(text: str, place: int) -> tuple[str, bool, int]:
    """The name at this place of the text, whether it is in quotes, and where it ends."""
    match = _WORD.match(text, place)
    assert match is not None  # an empty name matches everywhere
    if match[1] is not None:
        return match[1].replace('""', '"'), True, match.end()
    return match[2].strip(), False, match.end()


def match(
    by_class: LabelPatterns, names: Sequence[str], where: str, todo: str = "choose among them with --labels CLASS=NAME"
) -> dict[str, tuple[str, ...]]:
    """Class -> those of `names` that one of its patterns names.

    Raises:
        InputError: nothing matches a class; the sentence holds `where` and what to do.
    """
    matches = matching(by_class, names)
    for cls, hits in matches.items():
        if not hits:
            raise InputError(
                f"expected a label {' or '.join(map(str, by_class[cls]))} for {cls}, got {', '.join(names) or 'none'} "
                f"in {where}; {todo}"
            )
    return matches


def matching(by_class: LabelPatterns, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Class -> those of `names` that one of its patterns names; () where none does."""
    hits = {cls: {name for pattern in patterns for name in _hits(pattern, names)} for cls, patterns in by_class.items()}
    return {cls: tuple(name for name in names if name in chosen) for cls, chosen in hits.items()}


def _hits(pattern: LabelPattern, names: Sequence[str]) -> list[str]:
    """Names that equal a pattern; if none does, those that do but for case; if none does, those that it matches."""
    text = canonical(pattern.text)
    if equal := [name for name in names if canonical(name) == text]:
        return equal
    folded = text.casefold()
    if alike := [name for name in names if canonical(name).casefold() == folded]:
        return alike
    return [] if pattern.literal else [name for name in names if fnmatchcase(canonical(name).casefold(), folded)]
