"""Prepared data and runs, as tables."""

from pathlib import Path

import pandas as pd

from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.errors import InputError
from medseg_attack.library.arguments import checked
from medseg_attack.metrics.empty import Empty
from medseg_attack.runs import reading
from medseg_attack.runs.rows import HEADER
from medseg_attack.stats import scores
from medseg_attack.stats.scores import Unit

_COLUMNS = ("run", "case", "volume", "group", "cls", "linf", "forwards", "backwards", *scores.COUNTS)


@checked
def open_data(path: str | Path) -> Prepared:
    """The data set that `medattack prepare` wrote.

    `table()` is a pandas table of its cases. `batch(ids)` reads some of them: `image` (b, c, *s) in [0, 1], `target`
    (b, k, *s) and `cases`. Cases are read when they are asked for.

    Raises:
        InputError: there is none, or it was not finished.
    """
    return open_prepared(Path(path))


@checked
def read_runs(*paths: str | Path, allow_partial: bool = False) -> pd.DataFrame:
    """The rows of all runs at or below the paths: a row per run, case and class, with pixel counts.

    The columns `run`, `model`, `attack`, `eps` and others say which run a row is of; `summary` averages them.

    Args:
        paths: folders that `medattack attack` or `medattack evaluate` wrote.
        allow_partial: whether runs of part of the cases (`--limit`) are read, too.

    Raises:
        InputError: a path holds no run, a run did not finish, or it is of part of the cases.
    """
    return reading.read_runs([Path(path) for path in paths], allow_partial=allow_partial)


@checked
def summary(rows: pd.DataFrame, *, unit: Unit = "volume", empty: Empty = "one") -> pd.DataFrame:
    """One row per run: Dice per class and on average, clean and under attack, intervals, success and cost.

    It is the table of `medattack attack`, whose columns docs/results.md explains.

    Args:
        rows: of `read_runs`, or `rows` of what `attack` returned; pd.concat puts several together.
        unit: what has one Dice: "slice", "volume" or "patient".
        empty: Dice of a class that is absent from truth and prediction: "one" or "zero"; "nan" leaves out each class
            that is absent from the truth.

    Raises:
        InputError: the table is empty, or has not the columns of rows.
    """
    lacking = [name for name in _COLUMNS if name not in rows]
    if lacking or rows.empty:
        got = f"none called {lacking[0]}" if lacking else "an empty one"
        raise InputError(f"expected a table with the columns of read_runs, got {got}; give read_runs(...), or .rows")
    return scores.summary(rows, unit=unit, empty=empty, header=HEADER)
