"""Baselines: copies of runs under a name, which later runs are compared with. All of them are kept, as a history.

A baseline holds rows and headers alone, no scan and no image, so it is small enough for a repository. No torch in here.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from medseg_attack.checks.stored import FILE as CHECKS
from medseg_attack.errors import InputError, nearest
from medseg_attack.runs.grid import safe
from medseg_attack.runs.reading import find_runs
from medseg_attack.runs.stored_files import CONFIG_FILE, HEADER_FILE
from medseg_attack.storage.files import writing
from medseg_attack.storage.forms import MOST, Form
from medseg_attack.storage.json_files import read_json, write_json
from medseg_attack.storage.locks import locked
from medseg_attack.storage.paths import inside, require_file

FOLDER, RECORD, DIGITS = "baselines", "baseline.json", 4
SCORES = ("model", "attack", "loss", "eps", "ball", "mean_clean", "mean_adv", "low", "high", "patients")  # of a run


class _Scores(Form):
    """The fields `SCORES` of a run; older records lack the ball."""

    __pydantic_extra__: dict[str, str | int | float | None] = Field(init=False)

    model: str
    attack: str
    eps: float | None = Field(ge=-MOST, le=MOST)
    ball: str | None = None


class _Record(Form):
    """The record of a baseline, which is written last."""

    saved: str
    unit: str
    empty: str
    runs: list[_Scores]


@dataclass(frozen=True)
class Baseline:
    """Runs that were saved under a name.

    Attributes:
        number: 1 for the first of that name.
        saved: date and time in UTC.
        runs: the fields `SCORES` of each, as they were printed then.
    """

    name: str
    number: int
    folder: Path
    saved: str
    runs: Sequence[dict[str, Any]]


def history(workspace: Path, name: str = "") -> list[Baseline]:
    """All baselines of the workspace, or those of a name, the oldest first."""
    folders = sorted((workspace / FOLDER).glob(f"{name or '*'}/*/{RECORD}"))
    return [_read(file.parent) for file in folders if file.parent.name.isdecimal()]


def reference_folder(workspace: Path, reference: Path) -> Path:
    """The folder of runs that a reference means: a path that exists, else the newest baseline of that name.

    Raises:
        InputError: it is neither.
    """
    if reference.exists() or len(reference.parts) > 1:
        return reference
    saved = history(workspace, require_name(str(reference)))
    if not saved:
        known = {baseline.name for baseline in history(workspace)}
        raise InputError(
            f"expected a folder of runs or the name of a baseline in {workspace / FOLDER}, got {reference}; "
            f"{nearest(str(reference), known)}; --save-as {reference} without --reference saves the first"
        )
    return saved[-1].folder


def save_baseline(
    workspace: Path, name: str, runs: Sequence[Path], table: pd.DataFrame, saved: str, rules: dict[str, str]
) -> Baseline:
    """Copies the rows and headers of runs into the workspace as the newest baseline of that name.

    Args:
        runs: folders of runs or of studies.
        table: the summary of the runs.
        saved: date and time in UTC.
        rules: `unit` and `empty` of the summary.

    Raises:
        InputError: the name is no name of a folder.
    """
    root = inside(workspace, f"{FOLDER}/{require_name(name)}")
    with locked(root), writing(root):
        number = max((baseline.number for baseline in history(workspace, name)), default=0) + 1
        folder = inside(root, f"{number:0{DIGITS}}")
        if folder.exists():
            shutil.rmtree(folder)  # of a process that was killed before it wrote the record
        studies = groupby(dict.fromkeys(find_runs(runs)), key=lambda run: run.parent.parent)
        for place, (_, of_study) in enumerate(studies):
            for run in of_study:
                _copy(run, folder / f"{place:02d}" / run.parent.name / run.name)
        scores = table[list(SCORES)].astype(object)
        records = scores.where(scores.notna(), None).to_dict("records")
        write_json(folder / RECORD, {"saved": saved, "runs": records, **rules})
    return _read(folder)


def _copy(run: Path, target: Path) -> None:
    """Copies what tables are made of."""
    parts = sorted(run.glob("parts/*.parquet"))
    for file in [run / CONFIG_FILE, run / HEADER_FILE, *parts]:
        destination = target / file.relative_to(run)
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(require_file(file), destination)
    if (run.parent / CHECKS).is_file():
        shutil.copyfile(run.parent / CHECKS, target.parent / CHECKS)


def _read(folder: Path) -> Baseline:
    record = read_json(folder / RECORD, _Record)
    return Baseline(folder.parent.name, int(folder.name), folder, record["saved"], record["runs"])


def require_name(name: str) -> str:
    """The name of a baseline.

    Raises:
        InputError: it is no name of a folder.
    """
    if not name or name != safe(name) or name[0] in ".-":
        raise InputError(
            f"expected a name of letters, digits, '-', '.' and '_' that does not begin with '-' or '.', got {name!r}; "
            "write it so"
        )
    return name
