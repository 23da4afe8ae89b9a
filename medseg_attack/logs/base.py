"""The protocol of a tracker of experiments; its files are kept in the workspace, unless its own variables say more."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Protocol, runtime_checkable

import pandas as pd

from medseg_attack.report.sheet import Sheet

TRACKERS = {
    "mlflow": "medseg_attack.logs.mlflow_log",
    "tensorboard": "medseg_attack.logs.tensorboard_log",
    "wandb": "medseg_attack.logs.wandb_log",
}


@runtime_checkable
class Log(Protocol):
    """One run of a tracker."""

    @property
    def place(self) -> str:
        """The place of the run for its owner: a command or an address."""

    def points(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each curve, by the curve's name."""

    def table(self, sheet: Sheet, frame: pd.DataFrame) -> None:
        """Keeps a table as it is printed, and its numbers."""

    def close(self, *, finished: bool) -> None:
        """Ends the run; `finished` is False after an error."""


class NoLog:
    """The log of nobody."""

    place = ""

    def points(self, values: Mapping[str, float], step: int) -> None:
        pass

    def table(self, sheet: Sheet, frame: pd.DataFrame) -> None:
        pass

    def close(self, *, finished: bool) -> None:
        pass


@contextmanager
def open_log(tracker: str | None, workspace: Path, name: str, options: Mapping[str, str]) -> Iterator[Log]:
    """A run of a tracker, which ends with the block.

    Args:
        tracker: a key of `TRACKERS`; None for none.
        name: of the run.
        options: what the run was asked to do.

    Raises:
        InputError: the tracker is not installed, or cannot be reached.
    """
    log: Log = NoLog()
    if tracker is not None:
        log = import_module(TRACKERS[tracker]).start_run(workspace / "logs", name, options)
    try:
        yield log
    except BaseException:
        log.close(finished=False)
        raise
    log.close(finished=True)


def keys(names: Sequence[str]) -> dict[str, str]:
    """Names of curves by the names that they stand for; no two are alike, and every tracker takes them.

    A slash divides a name into parts, which a tracker shows as folders.

    >>> keys(["dice/a(b", "dice/a)b", "dice/.."])
    {'dice/a(b': 'dice/a_b', 'dice/a)b': 'dice/a_b 2', 'dice/..': 'dice/_'}
    """
    result: dict[str, str] = {}
    for name in names:
        plain = "/".join(_plain(part) or "_" for part in name.split("/"))
        number = 1 + sum(re.fullmatch(re.escape(plain) + r"( \d+)?", key) is not None for key in result.values())
        result[name] = plain if number == 1 else f"{plain} {number}"
    return result


def _plain(part: str) -> str:
    return re.sub(r"[^A-Za-z0-9_\-. ]+", "_", part)[:100].strip(". ")
