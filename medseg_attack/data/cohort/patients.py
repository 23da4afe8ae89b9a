"""Patients by a rule of the reader, unless `--patient` gives another, and a warning where names speak against it.

`--patient folder` takes each folder of the source for a patient. Any other text is a regular expression that is
searched for in a case's name; its first group, or all of it, is the patient. A pattern with a slash is searched for in
the path below the source.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medseg_attack.data.cohort.doubles import canonical
from medseg_attack.errors import InputError, plural

FOLDER = "folder"
LEADING_NUMBER = r"^\D*\d+"  # the part of a name that most often is the patient's: patient012 of patient012_frame01


@dataclass(frozen=True)
class Named:
    """A case, with all that its patient may be found by.

    Attributes:
        name: of the case, without folders.
        path: of its file or folder.
        default: the patient by the reader's own rule.
    """

    name: str
    path: Path
    default: str


@dataclass(frozen=True)
class Patients:
    """The patient of each case.

    Attributes:
        groups: case -> patient.
        rule: how they were told apart, as in "by their PatientID".
        warnings: reasons to doubt it, a sentence each.
    """

    groups: Mapping[str, str]
    rule: str
    warnings: tuple[str, ...] = ()


def patients(cases: Mapping[str, Named], option: str, base: Path, default_rule: str) -> Patients:
    """The patient of each case, by the option where there is one.

    Args:
        option: a regular expression, "folder", or "" for the reader's own rule.
        base: the folder whose folders `--patient folder` takes for patients.
        default_rule: the reader's own rule in words, as in "by their PatientID".

    Raises:
        InputError: the option is no regular expression, or does not find a patient for each case.
    """
    names = {case: named.name for case, named in cases.items()}
    if not option:
        groups = {case: named.default for case, named in cases.items()}
        return Patients(groups, default_rule, (*_warnings(groups, names), *spelt_alike(groups, names)))
    if option == FOLDER:
        groups = {case: _folder(named.path, base) for case, named in cases.items()}
        return Patients(groups, f"by the folders of {base.name or base}", spelt_alike(groups, names))
    try:
        pattern = re.compile(option)
    except re.error as error:
        raise InputError(
            f"--patient: expected a regular expression or 'folder', got {option!r} ({error}); write one such as "
            "'^[^_]+'"
        ) from error
    texts = {
        case: named.path.relative_to(base).as_posix() if "/" in option else named.name for case, named in cases.items()
    }
    groups = {case: _searched(pattern, text) for case, text in texts.items()}
    return Patients(groups, f"by --patient '{option}'", spelt_alike(groups, names))


def _folder(path: Path, base: Path) -> str:
    parts = path.relative_to(base).parts
    if len(parts) < 2 and not path.is_dir():
        raise InputError(
            f"--patient folder: expected a folder for each patient in {base}, got the file {path.name}; move the files "
            "of each patient to a folder, or give a pattern"
        )
    return parts[0] if parts else base.name


def _searched(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    patient: str | None = None if match is None else match[1] if pattern.groups else match[0]
    if not patient:
        raise InputError(
            f"--patient: expected {pattern.pattern!r} in every file's name, got {text}; change it, or write folder"
        )
    return patient


def _warnings(groups: Mapping[str, str], names: Mapping[str, str]) -> tuple[str, ...]:
    """A warning if cases of different patients have names that begin with one word and number."""
    by_start: dict[str, list[str]] = defaultdict(list)
    for case, name in names.items():
        if start := re.match(LEADING_NUMBER, name):
            by_start[start[0]].append(case)
    shared = {start: cases for start, cases in sorted(by_start.items()) if len({groups[case] for case in cases}) > 1}
    if not shared or len(by_start) < 2:
        return ()
    alike = " and ".join(names[case] for case in next(iter(shared.values()))[:2])
    return (
        f"{plural(len(set(groups.values())), 'patient')} by the format's own rule, but names suggest {len(by_start)}, "
        f"of whom some have several cases ({alike} ...): if so, give --patient '{LEADING_NUMBER}', or training and "
        "test share patients",
    )


def spelt_alike(groups: Mapping[str, str], names: Mapping[str, str]) -> tuple[str, ...]:
    """A warning if patients differ in case, spaces, signs or leading zeros alone: one may be split into several.

    >>> spelt_alike({"a": "PAT-0815", "b": "pat 815 ", "c": "PAT-816"}, {"a": "one", "b": "two", "c": "three"})[0][:68]
    'one and two are of patients who are spelt alike but for case, spaces'

    Args:
        groups: case -> patient.
        names: case -> what the warning calls it.
    """
    spellings: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for case, patient in groups.items():
        spellings[_letters(patient)].setdefault(patient, names[case])
    alike = [sorted(cases.values()) for cases in spellings.values() if len(cases) > 1]
    if not alike:
        return ()
    more = f" (and {plural(len(alike) - 1, 'more such group')})" if alike[1:] else ""
    return (
        f"{' and '.join(alike[0][:2])} are of patients who are spelt alike but for case, spaces, signs or leading "
        f"zeros and count as several{more}: if they are one, move their scans to one folder and give --patient "
        "folder, or training and test share patients",
    )


def _letters(patient: str) -> tuple[str, ...]:
    """The words and numbers of an identifier, without what people write in several ways.

    >>> _letters("PAT-0815 "), _letters("pat815"), _letters("p1-1") == _letters("p11")
    (('pat', '815'), ('pat', '815'), False)
    """
    parts = re.findall(r"\d+|[^\W\d_]+", canonical(patient).casefold())
    return tuple(part.lstrip("0") or "0" if part.isdecimal() else part for part in parts) or (patient,)


def one_for_many(ids: Iterable[tuple[str, Path]], base: Path) -> tuple[str, ...]:
    """A warning if one identifier stands for all cases, or for several folders of the source, as anonymisers make it.

    Args:
        ids: the identifier and the folder of each case.
        base: the source.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for identifier, path in ids:
        folders[identifier].append(path.relative_to(base).parts[0] if path != base else "")
    alone = len(folders) == 1
    shared = {identifier: places for identifier, places in folders.items() if len(places if alone else set(places)) > 1}
    if not shared:
        return ()
    most = max(shared.values(), key=len)
    many = f"all {len(most)} series" if alone else f"series in {len(set(most))} folders"
    return (
        f"{many} of {base} have one PatientID and count as one patient: if an anonymiser wrote it, give --patient "
        "folder, or --patient with a pattern of the paths",
    )
