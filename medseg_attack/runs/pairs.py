"""Pairs of runs that are compared: those that differ in their weights alone. No torch in here.

A gate that compared unlike runs would be worse than none: another budget or other cases move Dice more than a
retrained model does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medseg_attack.errors import InputError
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.reading import find_runs, read_runs, with_distinct_models
from medseg_attack.runs.stored_files import read_header

MAY_DIFFER = frozenset({"weights"})


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where its rows and header lie.
        model: its label.
        weights: SHA-256 of the model's weights.
        config: all that determined its rows, but for the weights.
    """

    folder: Path
    model: str
    weights: str
    config: dict[str, Any]


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
    matched = [Pair(run, _like(run, olds)) for folder in dict.fromkeys(find_runs(new)) for run in [_read(folder)]]
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
    numbered = [(i, pair.new.folder, pair.old.folder) for i, pair in enumerate(matched)]
    new = [read_runs([folder], allow_partial=allow_partial).assign(pair=i) for i, folder, _ in numbered]
    old = [read_runs([folder], allow_partial=allow_partial).assign(pair=i) for i, _, folder in numbered]
    rows_new, rows_old = (with_distinct_models(pd.concat(tables, ignore_index=True)) for tables in (new, old))
    return rows_new, rows_old


def _read(folder: Path) -> Run:
    header, config = read_header(folder), RunFolder(folder).config
    rest = {key: value for key, value in config.items() if key not in MAY_DIFFER}
    return Run(folder, str(header["model"]), str(config.get("weights")), rest)


def _like(run: Run, olds: Sequence[Run]) -> Run:
    like = [old for old in olds if old.config == run.config]
    if len(like) > 1:
        like = [old for old in like if old.model == run.model]
    if len(like) == 1:
        return like[0]
    if like or any(old.config == run.config for old in olds):
        raise InputError(
            f"expected one model of the reference to compare {run.model} ({run.folder}) with, got several; "
            "give the folder of one of them"
        )
    nearest = min(olds, key=lambda old: len(_differences(run, old)))
    raise InputError(
        f"expected {run.folder} and a run of the reference to differ in their weights alone, got other settings: "
        f"{'; '.join(_differences(run, nearest))} (in {nearest.folder}); run both with the same data and settings"
    )


def _differences(new: Run, old: Run) -> list[str]:
    keys = sorted({*new.config, *old.config})
    return [
        f"{key}: {_short(new.config.get(key))} here, {_short(old.config.get(key))} there"
        for key in keys
        if new.config.get(key) != old.config.get(key)
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text[:9] + "...'" if isinstance(value, str) and len(value) == 64 else text  # a hash
