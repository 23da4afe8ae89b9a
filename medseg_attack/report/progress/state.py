"""The state of a study: cases that are done, the rate, the Dice so far and the processes at work."""

import functools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from medseg_attack.errors import InputError
from medseg_attack.runs.claim import IDENTITY
from medseg_attack.runs.folder import read_part
from medseg_attack.runs.stored_files import CONFIG_FILE, HEADER_FILE, STUDY_FILE, read_header
from medseg_attack.stats.scores import COUNTS, pooled, scored
from medseg_attack.storage.heartbeats import Worker, workers_of
from medseg_attack.storage.kinds import instead, is_certificate

RECENT = 600.0  # seconds whose cases the rate is taken from
SCORES = ("dice_clean", "dice_adv")


class Part(NamedTuple):
    """A chunk of a run that is on the disk.

    Attributes:
        worker: the process that wrote it; "" where an older version did.
        written: when, in seconds since 1970.
        sums: by class, the sums of clean and adversarial Dice over scans, and the number of scans.
    """

    cases: int
    worker: str
    written: float
    sums: dict[str, tuple[float, float, int]]


@dataclass(frozen=True)
class RunState:
    """The state of one run.

    Attributes:
        name: its folder, as seen from that of all.
        total: cases that it will have; None where nothing tells.
        clean, adv: mean Dice of the scans that are done, over classes; NaN without any.
        is_finished: whether it has its header.
    """

    name: str
    total: int | None
    parts: tuple[Part, ...]
    clean: float
    adv: float
    is_finished: bool

    @property
    def cases(self) -> int:
        return sum(part.cases for part in self.parts)


@dataclass(frozen=True)
class WorkerState:
    """A process that works on a study, or did.

    Attributes:
        cases: pairs of a case and a run that it wrote.
        written: when it last wrote, in seconds since 1970; None: not yet.
    """

    worker: Worker
    cases: int
    written: float | None


@dataclass(frozen=True)
class StudyState:
    """The state of all runs below a folder.

    Attributes:
        workers: their processes; those that ended in order are forgotten when all runs are finished.
        rate: pairs of a case and a run per second, of the last minutes; NaN where nobody is at work.
    """

    folder: Path
    runs: tuple[RunState, ...]
    workers: tuple[WorkerState, ...]
    rate: float

    @property
    def cases(self) -> int:
        """Pairs of a case and a run that are done."""
        return sum(run.cases for run in self.runs)

    @property
    def total(self) -> int | None:
        """Pairs of a case and a run that there will be; None where nothing tells."""
        totals = [run.total for run in self.runs]
        return None if None in totals or not totals else sum(total for total in totals if total is not None)

    @property
    def is_finished(self) -> bool:
        return bool(self.runs) and all(run.is_finished for run in self.runs)

    @property
    def seconds_left(self) -> float:
        """Seconds until all is done, at the rate of now; NaN where it is not known."""
        if self.is_finished:
            return 0.0
        return (self.total - self.cases) / self.rate if self.total is not None and self.rate > 0 else math.nan


def read_state(folder: Path) -> StudyState:
    """The state of all runs at or below a folder; none of a study that no process has begun.

    Raises:
        InputError: there is no run and no study, or a file of one is damaged.
    """
    studies = sorted({file.parent for file in folder.rglob(STUDY_FILE)})
    if not studies and folder.parent.parent.joinpath(STUDY_FILE).is_file():
        studies = [folder.parent.parent]  # of a single run
    workers = [worker for study in studies for worker in workers_of(study)]
    totals = {study / name: n for study in studies for worker in workers_of(study) for name, n in _cases(worker)}
    begun = {file.parent for file in folder.rglob(CONFIG_FILE) if not is_certificate(file.parent)}
    runs = sorted(begun | {run for run in totals if run.is_relative_to(folder)})
    if not runs and not any((study / IDENTITY).is_file() for study in studies):
        raise InputError(
            f"expected a run in {folder}, {instead(folder, 'none', 'give a folder that medattack attack writes to')}"
        )
    of_siblings = {run.parent: read_header(run)["cases"] for run in runs if (run / HEADER_FILE).is_file()}
    states = tuple(_run_state(run, folder, totals.get(run, of_siblings.get(run.parent))) for run in runs)
    parts = [part for state in states for part in state.parts]
    return StudyState(folder, states, tuple(_worker_state(w, parts) for w in workers), _rate(workers, parts))


def _cases(worker: Worker) -> Iterable[tuple[str, int]]:
    return worker.record.cases.items()


def _run_state(run: Path, folder: Path, total: int | None) -> RunState:
    parts = []
    for file in sorted(run.glob("parts/*.parquet")):
        state = file.stat()
        parts.append(_part(file, state.st_mtime, state.st_size))
    name = run.relative_to(folder).as_posix() if run != folder else run.name
    clean, adv = _mean_dice(parts)
    return RunState(name, total, tuple(parts), clean, adv, (run / HEADER_FILE).is_file())


@functools.lru_cache(maxsize=1_000_000)
def _part(file: Path, changed: float, size: int) -> Part:
    """A part that is read once, as long as it stays as it is."""
    table = read_part(file)
    worker = (table.schema.metadata or {}).get(b"worker", b"").decode(errors="replace")
    rows = table.to_pandas()
    if "n_target_adv" not in rows:  # rows of version 2
        rows = rows.assign(n_target_adv=rows["n_target"])
    scans = scored(pooled(rows[["group", "volume", "cls", *COUNTS]].assign(run=""), "volume"), "one")
    sums = scans.groupby("cls", sort=False)[list(SCORES)].agg(["sum", "count"])
    by_class = {
        str(cls): (float(clean), float(adv), int(n))
        for cls, (clean, n, adv, _) in zip(sums.index, sums.to_numpy(), strict=True)
    }
    return Part(int(pd.Series(rows["case"]).nunique()), worker, changed, by_class)


def _mean_dice(parts: Sequence[Part]) -> tuple[float, float]:
    """Mean clean and adversarial Dice: over the scans of each class, then over classes."""
    classes = {cls for part in parts for cls in part.sums}
    if not classes:
        return math.nan, math.nan
    of_classes = []
    for cls in classes:
        clean, adv, n = map(sum, zip(*(part.sums[cls] for part in parts if cls in part.sums), strict=True))
        of_classes.append((clean / n, adv / n))
    clean, adv = (sum(values) / len(classes) for values in zip(*of_classes, strict=True))
    return clean, adv


def _worker_state(worker: Worker, parts: Sequence[Part]) -> WorkerState:
    own = [part for part in parts if part.worker == worker.name]
    return WorkerState(worker, sum(part.cases for part in own), max((part.written for part in own), default=None))


def _rate(workers: Sequence[Worker], parts: Sequence[Part]) -> float:
    """Cases per second of the processes at work, since the first of them started, or of the last minutes."""
    working = {worker.name: worker.record.started for worker in workers if worker.state == "at work"}
    if not working:
        return math.nan
    now = time.time()
    first = min([*working.values(), *(part.written for part in parts if part.worker in working)])
    since = max(first, now - RECENT)
    return sum(part.cases for part in parts if part.written >= since) / max(now - since, 1e-3)
