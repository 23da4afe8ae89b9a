"""Which runs may be compared with a reference: those that differ in their weights alone; others are refused. No torch.

Without a reference `medattack compare` puts unlike runs into one table, and `report.tables.comparison` names their
cases. A gate that compared unlike runs would be worse than none: another budget or other cases move Dice more than a
retrained model does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from medseg_attack.errors import InputError, listed
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.reading import find_runs, read_runs
from medseg_attack.runs.stored_files import read_config, read_header
from medseg_attack.storage.json_files import digest

MAY_DIFFER = frozenset({"weights"})


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where its rows and header lie.
        model: its label.
        data: name of its data set.
        split: part of the data set that its cases are of.
        weights: SHA-256 of the model's weights.
        config: all that determined its rows, but for the weights.
    """

    folder: Path
    model: str
    data: str
    split: str
    weights: str
    config: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """Digest of its settings, which is that of its like, too."""
        return digest(self.config)


@dataclass(frozen=True)
class Pair:
    """A run and the reference's run of the same data, attack, budget and seed."""

    new: Run
    old: Run


def pairs(new: Sequence[Path], reference: Path) -> list[Pair]:
    """Every run at or below `new` paired with its like in `reference`.

    If the reference holds several models, the one of the same name is taken.

    Raises:
        InputError: a run has no like, or more than one, or a run of the reference is left over; says what differs.
    """
    olds = [_read(folder) for folder in find_runs([reference])]
    of_key: dict[str, list[Run]] = {}
    for old in olds:
        of_key.setdefault(old.key, []).append(old)
    runs = [_read(folder) for folder in dict.fromkeys(find_runs(new))]
    matched = [Pair(run, _like(run, of_key.get(run.key, []), olds)) for run in runs]
    compared = {pair.old.weights for pair in matched}
    used = {pair.old.folder for pair in matched}
    left = [old for old in olds if old.weights in compared and old.folder not in used]
    if left:
        raise InputError(
            f"expected every run of {left[0].model} in {reference} to have its like among the new ones, got none for "
            f"{', '.join(old.folder.name for old in left)}; run the same attacks and budgets on the new model"
        )
    return matched


def read_pairs(matched: Sequence[Pair], *, allow_partial: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the new runs and those of the reference's; the column `pair` is the same in both."""
    sides = [pair.new.folder for pair in matched], [pair.old.folder for pair in matched]
    new, old = (_numbered(read_runs(folders, allow_partial=allow_partial), folders) for folders in sides)
    return new, old


def _numbered(rows: pd.DataFrame, folders: Sequence[Path]) -> pd.DataFrame:
    """The rows with the numbers of their runs among `folders`; those of a run that is there twice are there twice."""
    numbers = pd.DataFrame({"run": list(map(str, folders)), "pair": range(len(folders))})
    return rows.merge(numbers, on="run")


def _read(folder: Path) -> Run:
    header, config = read_header(folder), read_config(folder)
    rest = {key: value for key, value in config.items() if key not in MAY_DIFFER}
    model, data, split = (str(header.get(key, "")) for key in ("model", "data", "split"))
    return Run(folder, model, data, split, str(config.get("weights")), rest)


def _like(run: Run, same: Sequence[Run], olds: Sequence[Run]) -> Run:
    """The run of the reference that differs from `run` in its weights alone.

    Args:
        same: runs of the same key.
        olds: all runs of the reference, of which an error names the nearest.
    """
    like = [old for old in same if old.model == run.model] if len(same) > 1 else same
    if len(like) == 1:
        return like[0]
    if same:
        raise InputError(
            f"expected one model of the reference to compare {run.model} ({run.folder}) with, got several; "
            "give the folder of one of them"
        )
    nearest = min(olds, key=lambda old: len(_differing(run, old)))
    raise InputError(
        f"expected {run.folder} and a run of the reference to differ in their weights alone, got other settings: "
        f"{'; '.join(_differences(run, nearest))} (in {nearest.folder}); run both with the same data and settings"
    )


def _differing(new: Run, old: Run) -> list[str]:
    """The names of settings in which two runs differ."""
    keys = sorted({*new.config, *old.config})
    return [key for key in keys if new.config.get(key) != old.config.get(key)]


def _differences(new: Run, old: Run) -> list[str]:
    """The settings in which two runs differ, each with both values; what a hash stands for is said in words."""
    words = {"cases": _cases, "data": _data, "fitted_on": _training_cases}
    return [f"{key}: {words.get(key, partial(_values, key))(new, old)}" for key in _differing(new, old)]


def _values(key: str, new: Run, old: Run) -> str:
    return f"{new.config.get(key)!r} here, {old.config.get(key)!r} there"


def _data(new: Run, old: Run) -> str:
    prints = [str(run.config.get("data"))[:12] for run in (new, old)]
    what = f"{old.data} there" if new.data != old.data else "other content under that name there"
    return f"{new.data} here, {what} (fingerprints {' and '.join(prints)})"


def _cases(new: Run, old: Run) -> str:
    new_ids, old_ids = _case_ids(new), _case_ids(old)
    counts = ", ".join(
        f"{len(ids)}{f' of {run.split}' if run.split else ''} {place}"
        for run, ids, place in ((new, new_ids, "here"), (old, old_ids, "there"))
    )
    sides = ("here", new_ids, {*old_ids}), ("there", old_ids, {*new_ids})
    missing = [(place, [case for case in ids if case not in others]) for place, ids, others in sides]
    named = [f"only {place} {listed(ids)}" for place, ids in missing if ids]
    return f"{counts}, {', '.join(named) or 'of the same names'}"


def _case_ids(run: Run) -> list[str]:
    return list(dict.fromkeys(RunFolder(run.folder).table(lambda column: column == "case")["case"].to_pylist()))


def _training_cases(new: Run, old: Run) -> str:
    return "the attack learned on other training cases here than there"
