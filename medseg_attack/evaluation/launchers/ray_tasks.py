"""A study as tasks of Ray, on this machine or on a cluster: every part of every model is a task."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medseg_attack.errors import InputError, package
from medseg_attack.evaluation.launchers.jobs import Job, logged

RETRIES = 5  # of a task whose process or machine is lost


def compute(jobs: Sequence[Job], settings: Mapping[str, Any]) -> Iterator[int]:
    """Runs the parts of a study as tasks; after each task that ends it yields the number of those that have ended.

    The tasks run on the cluster of RAY_ADDRESS, else on one that was started on this machine, else on this machine
    alone. A task whose process or machine is lost is run again; it skips what is on the disk.

    Args:
        settings: options of a task, such as num_gpus, num_cpus, memory or max_retries.

    Raises:
        InputError: Ray is not installed, refuses an option, or a part failed.
    """
    ray = package("ray", "run tasks with", "ray")
    is_new = not ray.is_initialized()
    if is_new:
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False, configure_logging=False)
    try:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        options = {"num_cpus": 1, "num_gpus": gpus, "max_retries": RETRIES} | dict(settings)
        try:
            task = ray.remote(**options)(_work)
            waiting = [task.remote(job) for job in jobs]
        except (TypeError, ValueError) as error:
            raise InputError(
                f"expected options of a Ray task, got '{str(error).splitlines()[0]}'; write for instance "
                "--ray num_gpus=0.5"
            ) from error
        while waiting:
            done, waiting = ray.wait(waiting)
            for each in done:
                _require_done(ray, each, jobs)
            yield len(done)
    finally:
        if is_new:
            ray.shutdown()


def _work(job: Job) -> None:
    with logged(job.out):
        job()


def _require_done(ray: Any, task: Any, jobs: Sequence[Job]) -> None:
    """Refuses a task that failed, in its own sentence where the input is at fault."""
    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(*error.cause.args) from error
        raise InputError(
            f"expected tasks that end well, got '{error.cause!r:.200}'; read the logs in {jobs[0].out / 'workers'}"
        ) from error
    except ray.exceptions.RayError as error:
        raise InputError(
            f"expected machines that stay, got '{str(error).splitlines()[0]}' after all retries; run the same command "
            "again, it goes on where it stopped"
        ) from error
