"""Labels that a scan lacks: absent organs, scans to drop, or an error, as `--missing` says."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from medseg_attack.data.cohort.notes import SHOWN
from medseg_attack.errors import InputError, listed, nearest

RULES = ("absent", "drop", "refuse")
MOST = 6  # labels of a scan that a note names


@dataclass(frozen=True)
class Lacking:
    """The answer to scans that lack labels.

    Attributes:
        dropped: scans that are left out.
        notes: a sentence for each class that scans lack.
    """

    dropped: frozenset[str]
    notes: tuple[str, ...]


def require_rule(rule: str) -> None:
    """Refuses a rule that there is not.

    Raises:
        InputError: it is none of `RULES`.
    """
    if rule not in RULES:
        raise InputError(f"--missing: expected absent, drop or refuse, got {rule!r}; {nearest(rule, RULES)}")


def without(lacking: Mapping[str, Iterable[str]], rule: str, labels: Mapping[str, Iterable[str]]) -> Lacking:
    """The scans to leave out and the notes, of scans that lack classes.

    Args:
        lacking: scan, as a sentence names it -> the classes that it has no label for; scans that have all may be in it.
        rule: "absent": the class has no voxel there; "drop": the scan is left out; "refuse": that is an error.
        labels: the labels that each scan has: beside them a misspelt one is noticed.

    Raises:
        InputError: a scan lacks a class and the rule is "refuse".
    """
    incomplete = {scan: classes for scan, names in lacking.items() if (classes := sorted(names))}
    if incomplete and rule == "refuse":
        scan, classes = next(iter(incomplete.items()))
        got = ", ".join(labels[scan]) or "none of it"
        raise InputError(
            f"expected a label of {' and '.join(classes)} in {scan}, got {got}; add it, name it with --labels, or give "
            "--missing absent or --missing drop"
        )
    if rule == "drop":
        notes = (
            f"{scan} is left out: it has no {' and no '.join(classes)}, only {labels_in(labels[scan])}"
            for scan, classes in incomplete.items()
        )
        return Lacking(frozenset(incomplete), tuple(notes))
    by_class: dict[str, list[str]] = {}
    for scan, classes in incomplete.items():
        for name in classes:
            by_class.setdefault(name, []).append(scan)
    return Lacking(
        frozenset(),
        tuple(
            f"{name} is taken as absent from {len(scans)} of {len(lacking)} scans, which have no label of it: "
            f"{', '.join(f'{scan} (only {labels_in(labels[scan])})' for scan in scans[:SHOWN])}"
            f"{', ...' if len(scans) > SHOWN else ''}"
            for name, scans in by_class.items()
        ),
    )


def labels_in(names: Iterable[str]) -> str:
    """The labels of a scan in a note, of many the first few.

    >>> labels_in(["liver", "spleen"]), labels_in([])
    ('liver, spleen', 'none')
    """
    return listed(list(names), MOST) or "none"
