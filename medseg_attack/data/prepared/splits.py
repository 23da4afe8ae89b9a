"""Who is trained on and who is held out: always whole patients."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medseg_attack.errors import InputError
from medseg_attack.storage.json_files import load_json

TEST, VAL = "test", "val"


def split(
    groups: Iterable[str], *, folds: int, test_fraction: float, seed: int, parts: Mapping[str, str] | None = None
) -> dict[str, str | int]:
    """Each patient's part: "test", or the fold (from 0) that it validates; the other folds train on it.

    Depends on the set of patients and the options alone. Fewer folds where there are fewer patients.

    Args:
        test_fraction: of the patients; 1 holds all of them out, for a network that is trained already.
        parts: of patients whom the data set itself has placed: "test" patients are tested on, and no others;
            "val" patients are fold 0.

    Raises:
        InputError: fewer than 3 patients or than 2 to train on, or an option out of range.
    """
    if not 0 < test_fraction <= 1:
        raise InputError(f"--test: expected a fraction above 0 and up to 1, got {test_fraction:g}; 0.2 is usual")
    if folds < 2:
        raise InputError(f"--folds: expected at least 2, got {folds}; 5 is usual")
    if seed < 0:
        raise InputError(f"--seed: expected 0 or more, got {seed}; write for instance --seed 0")
    patients = sorted(set(groups))
    if test_fraction == 1:
        return dict.fromkeys(patients, TEST)
    if len(patients) < 3:
        raise InputError(
            f"expected at least 3 patients to train, validate and test on, got {len(patients)} "
            f"({', '.join(patients)}); add scans of other patients, say who is one with --patient (a "
            "pattern, or folder), or give --test 1 to train on none"
        )
    own_parts = parts or {}
    order = [patients[i] for i in np.random.default_rng(seed).permutation(len(patients))]
    test = [patient for patient in order if own_parts.get(patient) == TEST]
    val = [patient for patient in order if own_parts.get(patient) == VAL]
    kept = [patient for patient in order if patient not in {*test, *val}]
    if not test:
        n_test = min(max(1, round(test_fraction * len(patients))), len(patients) - 2)
        test, kept = kept[:n_test], kept[n_test:]
    if not kept or len(kept) + len(val) < 2:
        raise InputError(
            f"expected patients to train and to validate on, got {len(kept) + len(val)} beside the {len(test)} that "
            "are held out; move some, or all into one folder"
        )
    first = 1 if val else 0  # a fold that is the data set's own
    n_folds = min(folds - first, len(kept))
    result: dict[str, str | int] = dict.fromkeys(test, TEST) | dict.fromkeys(val, 0)
    result |= {patient: first + i % n_folds for i, patient in enumerate(kept)}
    return dict(sorted(result.items()))


def split_of_file(file: Path, groups: Mapping[str, str]) -> dict[str, str | int]:
    """Each patient's part, by a file that names cases: nnU-Net's splits_final.json, or one split of three parts.

    nnU-Net's is a list of folds, `[{"train": [...], "val": [...]}, ...]`: those of "val" validate the fold. One split
    is `{"train": [...], "val": [...], "test": [...]}`, of which "val" is fold 0.

    Args:
        groups: case -> patient.

    Raises:
        InputError: the file is of neither form, names other cases, or separates cases of one patient.
    """
    content: Any = load_json(file)
    parts: dict[str, list[str | int]] = {case: [] for case in groups}
    for part, cases in _parts_of(content, file).items():
        for case in cases:
            if case not in parts:
                raise InputError(
                    f"--split-by: expected cases of the data in {file}, got {case!r}; write their names, such as "
                    f"{', '.join([*groups][:3])}"
                )
            parts[case].append(part)
    result: dict[str, str | int] = {}
    for case, places in parts.items():
        if len(places) != 1:
            got = " and ".join(map(str, places)) or "none"
            raise InputError(
                f"--split-by: expected {case} in one part of {file}, got {got}; complete or correct the file"
            )
        if result.setdefault(groups[case], places[0]) != places[0]:
            raise InputError(
                f"--split-by: expected the cases of the patient {groups[case]} in one part of {file}, got "
                f"{result[groups[case]]} and {places[0]}; correct the file, or say who is a patient with --patient"
            )
    return dict(sorted(result.items()))


def _parts_of(content: Any, file: Path) -> dict[str | int, list[str]]:
    folds = content if isinstance(content, list) else [content]
    names = {"train", "val"} if isinstance(content, list) else {"train", "val", TEST}
    for fold in folds:
        if not isinstance(fold, dict) or not fold.keys() <= names or not all(map(_are_names, fold.values())):
            raise InputError(
                f"--split-by: expected lists of cases under train and val (and test, in one split) in {file}, got "
                f"{fold!r:.100}; write nnU-Net's splits_final.json"
            )
    if isinstance(content, list):
        return {number: fold.get("val", []) for number, fold in enumerate(folds)}
    return {TEST: content.get(TEST, []), 0: content.get("val", []), 1: content.get("train", [])}


def _are_names(cases: Any) -> bool:
    return isinstance(cases, list) and all(isinstance(case, str) for case in cases)
