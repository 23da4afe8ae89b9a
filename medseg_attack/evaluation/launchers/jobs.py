"""A part of a study as another process runs it, on any machine that reaches the same folders."""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medseg_attack.errors import InputError, listed, plural
from medseg_attack.evaluation.opening import open_study
from medseg_attack.evaluation.studies.opened import OpenedStudy, RunOptions
from medseg_attack.evaluation.studies.running import claim_folder, run
from medseg_attack.models.trust import use_trust
from medseg_attack.registry.foreign import adopt, foreign_entries, foreign_errors_named
from medseg_attack.registry.table import Entry
from medseg_attack.runs.chunks import chunks
from medseg_attack.runs.study import Study
from medseg_attack.runtime import pick_device
from medseg_attack.storage.heartbeats import WORKERS, worker_name, workers_of

MOST_PARTS = 16  # that a study is cut into where nobody says how many


@dataclass(frozen=True)
class Job:
    """A part of a study.

    Attributes:
        study: its fields, with paths as seen from `folder`.
        folder: working directory of the command that launched it.
        device: name of a device, or auto.
        model: number of the one model that it attacks; None: all of them.
        parts: entries of the launching program's own parts.
    """

    study: dict[str, Any]
    folder: Path
    workspace: Path
    out: Path
    device: str
    options: RunOptions
    model: int | None = None
    parts: tuple[Entry, ...] = ()

    def __call__(self) -> None:
        """Computes what is missing of its part."""
        os.chdir(self.folder)
        for entry in self.parts:
            adopt(entry)
        with foreign_errors_named():
            self._compute()

    def _compute(self) -> None:
        use_trust(self.workspace, False)  # the code that the launching command ran is remembered
        opened = open_study(
            Study.model_validate(self.study), self.workspace, pick_device(self.device), self.options, self.out
        )
        k, n = self.options.shard
        print(f"part {k}/{n} of {self.out} on {opened.device}, worker {worker_name()}", file=sys.stderr, flush=True)
        models = None if self.model is None else [opened.models[self.model]]
        for done in run(opened, models):
            print(f"{done} cases done", file=sys.stderr, flush=True)

    def checkpoint(self, *_args: Any, **_kwargs: Any) -> Any:
        """The submission that goes on with this part; submitit asks for it when SLURM is about to end the job."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def jobs_of(opened: OpenedStudy, workspace: Path, device: str, n_parts: int, *, by_model: bool) -> list[Job]:
    """The parts of a study, whose folder is claimed for it.

    Args:
        n_parts: 0: as many as there are chunks of cases, at most `MOST_PARTS`.
        by_model: whether every model has parts of its own.

    Raises:
        InputError: the study cannot be run, its folder holds another one, or processes are at work on it.
    """
    if names := [worker.name for worker in workers_of(opened.out) if worker.state == "at work"]:
        raise InputError(
            f"expected a study that nobody works on, got {plural(len(names), 'worker')} on {opened.out} "
            f"({listed(names)}), whose work new jobs would do again; wait for "
            f"them with medattack watch {opened.out}, or end them first"
        )
    claim_folder(opened)
    n = n_parts or min(MOST_PARTS, max(len(chunks(opened.refs(model))) for model in opened.models))
    first = Job(
        opened.study.model_dump(),
        Path.cwd(),
        workspace.absolute(),
        opened.out.absolute(),
        device,
        opened.options,
        parts=foreign_entries(),
    )
    models: Sequence[int | None] = range(len(opened.models)) if by_model else [None]
    return [
        replace(first, options=replace(opened.options, shard=(k, n)), model=model) for model in models for k in range(n)
    ]


@contextmanager
def logged(out: Path) -> Iterator[None]:
    """A scope that appends its output, and an error that ends it, to this worker's log in the study's folder."""
    file = out / WORKERS / f"{worker_name()}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        try:
            yield
        except BaseException:
            traceback.print_exc(file=log)
            raise


def read_settings(texts: Sequence[str], option: str) -> dict[str, int | float | str]:
    """The settings of a launcher, KEY=VALUE; numbers as numbers.

    Raises:
        InputError: a text is not KEY=VALUE.

    >>> read_settings(["partition=gpu", "num-gpus=0.5", "time=90"], "--slurm")
    {'partition': 'gpu', 'num_gpus': 0.5, 'time': 90}
    """
    settings: dict[str, int | float | str] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not (sign and key.strip() and value.strip()):
            raise InputError(f"expected {option} KEY=VALUE, got {text!r}; write for instance {option} partition=gpu")
        settings[key.strip().replace("-", "_")] = _number(value.strip())
    return settings


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            number: int | float = kind(text)
        except ValueError:
            continue
        return number if text[0].isdecimal() and text.isascii() else text
    return text
