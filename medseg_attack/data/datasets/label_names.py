"""Which labels of a scan become which class: `liver=Liver,kidney=Kidney*`."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from medseg_attack.errors import InputError

LabelPatterns = Mapping[str, tuple[str, ...]]


def parse(text: str) -> dict[str, tuple[str, ...]]:
    """Class -> patterns of label names, in the order of the text; `|` separates patterns.

    >>> parse("liver=Liver,kidney=Kidney*|Niere*")
    {'liver': ('Liver',), 'kidney': ('Kidney*', 'Niere*')}

    Raises:
        InputError: it is not of this form.
    """
    result: dict[str, tuple[str, ...]] = {}
    for part in text.split(",") if text else ():
        name, equals, patterns = (word.strip() for word in part.partition("="))
        wanted = tuple(pattern.strip() for pattern in patterns.split("|"))
        if not (name and equals and all(wanted)) or name in result:
            raise InputError(
                f"labels: expected CLASS=NAME with each class once, got {part.strip()!r} in {text!r}; "
                "write for instance 'liver=Liver,kidney=Kidney*'"
            )
        result[name] = wanted
    return result


def match(
    wanted: LabelPatterns, names: Sequence[str], where: str, todo: str = "choose among them with --labels CLASS=NAME"
) -> dict[str, tuple[str, ...]]:
    """Class -> those of `names` that one of its patterns matches, whatever their case.

    Raises:
        InputError: nothing matches a class; the sentence holds `where` and what to do.
    """
    matches = {
        cls: tuple(n for n in names if any(fnmatchcase(n.lower(), pattern.lower()) for pattern in patterns))
        for cls, patterns in wanted.items()
    }
    for cls, hits in matches.items():
        if not hits:
            raise InputError(
                f"expected a label {' or '.join(wanted[cls])} for {cls}, got {', '.join(names) or 'none'} in {where}; "
                f"{todo}"
            )
    return matches
