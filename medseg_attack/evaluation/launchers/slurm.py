"""A study as a job array of SLURM, through submitit."""

import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_attack.errors import InputError, package
from medseg_attack.evaluation.launchers.jobs import Job
from medseg_attack.storage.heartbeats import WORKERS

MINUTES = 240  # of a job that no other time is given to; a job that reaches it is queued again and goes on
LOCAL_CLUSTERS = ("local", "debug")  # clusters of submitit that are this machine


@dataclass(frozen=True)
class Submission:
    """A job array that was submitted.

    Attributes:
        ids: of its jobs.
        local_jobs: the jobs of submitit that run on this machine; none where SLURM has them.
    """

    ids: tuple[str, ...]
    local_jobs: tuple[Any, ...]


def submit(jobs: Sequence[Job], settings: Mapping[str, Any]) -> Submission:
    """Submits the parts of a study as one job array; the logs go to the folder of the study.

    Args:
        settings: options of sbatch, such as partition, time or gres; `cluster` local or debug runs the jobs on this
            machine, `name` is that of the array.

    Raises:
        InputError: submitit is not installed, SLURM is not there or refuses an option.
    """
    submitit = package("submitit", "submit jobs with", "cluster")
    from submitit.core.utils import FailedSubmissionError
    from submitit.slurm.slurm import _make_sbatch_string

    options = {"time": MINUTES} | dict(settings)
    cluster, name = str(options.pop("cluster", "slurm")), str(options.pop("name", "medattack"))
    if cluster not in ("slurm", *LOCAL_CLUSTERS):
        raise InputError(f"expected --slurm cluster=slurm, local or debug, got {cluster!r}; choose one of them")
    known = inspect.signature(_make_sbatch_string).parameters
    parameters = {f"slurm_{key}": value for key, value in options.items() if key in known}
    others = {key: value for key, value in options.items() if key not in known}
    try:
        executor = submitit.AutoExecutor(folder=_folder(jobs), cluster=cluster)
        if cluster == "slurm":
            executor.update_parameters(slurm_additional_parameters={"requeue": True} | others, **parameters)
        executor.update_parameters(name=name)
        with _errors_in(_folder(jobs)) if cluster == "local" else nullcontext(), executor.batch():
            submitted = [executor.submit(job) for job in jobs]
    except (FailedSubmissionError, RuntimeError, OSError) as error:
        raise InputError(
            f"expected SLURM to take the jobs, got '{_last_line(error)}'; run it where sbatch works, and give the "
            "options that your cluster asks for as --slurm KEY=VALUE"
        ) from error
    return Submission(tuple(each.job_id for each in submitted), tuple(submitted) if cluster in LOCAL_CLUSTERS else ())


def wait(submission: Submission, jobs: Sequence[Job]) -> Iterator[int]:
    """Waits for the jobs that run on this machine; after each that ends it yields 1.

    Raises:
        InputError: a job failed.
    """
    from submitit.core.utils import FailedJobError

    for each in submission.local_jobs:
        try:
            each.result()
        except FailedJobError as error:
            raise InputError(
                f"expected jobs that end well, got '{_last_line(_trace_of(error))}'; read the logs in {_folder(jobs)}"
            ) from error
        yield 1


@contextmanager
def _errors_in(folder: Path) -> Iterator[None]:
    """A scope in which processes that start have a log for their errors: an interruption ends them in tracebacks."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = os.dup(2)
    try:
        with (folder / "launcher.err").open("ab") as log:
            os.dup2(log.fileno(), 2)
        yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)


def _folder(jobs: Sequence[Job]) -> Path:
    return jobs[0].out / WORKERS


def _trace_of(error: BaseException) -> str:
    """The trace of a job that failed, which submitit puts between two lines; all of another error."""
    first, *trace = re.split(r"^-{10,}$", str(error), flags=re.MULTILINE)
    return (trace[0] if trace else first).replace(f"{InputError.__module__}.{InputError.__name__}: ", "")


def _last_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
