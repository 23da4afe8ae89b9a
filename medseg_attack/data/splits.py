"""Who is trained on and who is held out: always whole patients."""

from collections.abc import Iterable

import numpy as np

from medseg_attack.errors import InputError

TEST = "test"


def split(groups: Iterable[str], *, folds: int, test_fraction: float, seed: int) -> dict[str, str | int]:
    """Each patient's part: "test", or the fold (from 0) that it validates; the other folds train on it.

    Depends on the set of patients and the three options alone. Fewer folds where there are fewer patients.

    Raises:
        InputError: fewer than 3 patients, or `test_fraction`, `folds` or `seed` out of range.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"--test: expected a fraction between 0 and 1, got {test_fraction:g}; 0.2 is usual")
    if folds < 2:
        raise InputError(f"--folds: expected at least 2, got {folds}; 5 is usual")
    if seed < 0:
        raise InputError(f"--seed: expected 0 or more, got {seed}; write for instance --seed 0")
    patients = sorted(set(groups))
    if len(patients) < 3:
        raise InputError(
            f"expected at least 3 patients to train, validate and test on, got {len(patients)} "
            f"({', '.join(patients)}); add scans of other patients"
        )
    order = [patients[i] for i in np.random.default_rng(seed).permutation(len(patients))]
    n_test = min(max(1, round(test_fraction * len(patients))), len(patients) - 2)
    kept = order[n_test:]
    parts: dict[str, str | int] = dict.fromkeys(order[:n_test], TEST)
    parts |= {patient: i % min(folds, len(kept)) for i, patient in enumerate(kept)}
    return dict(sorted(parts.items()))
