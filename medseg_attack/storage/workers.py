"""Work done by several processes, with results and errors in the order of the tasks, as if one process did it all."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from medseg_attack.errors import InputError

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2  # tasks of each process that may be done before their turn: results wait in memory
PRELOADED = ["medseg_attack.types"]  # it loads torch, which takes seconds, once for all processes
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def cores() -> int:
    """The cores that this process may use: those it is bound to, or fewer where its container has a quota."""
    try:
        bound = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        bound = os.cpu_count() or 1
    return max(1, min([bound, *(int(quota) for quota in _quotas())]))


def _quotas() -> Iterator[float]:
    """The quotas in cores of this process's control group and of those around it, of both versions."""
    with suppress(OSError, ValueError):
        for line in OWN_CGROUP.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "cpu" not in kinds.split(","):
                continue
            root = CGROUPS / "cpu" if kinds else CGROUPS
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                with suppress(OSError, ValueError):
                    if kinds:
                        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                    else:
                        quota, period = (folder / "cpu.max").read_text().split()
                    if quota.strip() not in ("max", "-1"):
                        yield int(quota) / int(period)
                if folder == root:
                    break


@dataclass(frozen=True)
class _Failure:
    """An error of a worker, with its cause, which pickling would lose."""

    error: Exception
    cause: BaseException | None


class _Worker:
    """A process that does one task after the other.

    It ends when its parent ends, however that ends.
    """

    def __init__(self, work: Callable[[Any], Any]) -> None:
        methods = multiprocessing.get_all_start_methods()
        # never a plain fork, which would copy threads' locks and the lock of the folder that is written to
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload(PRELOADED)
        self.connection: Connection
        self.connection, far_end = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(far_end, work), daemon=True)
        self.process.start()
        far_end.close()

    def begin(self, task: Any) -> None:
        with _living():
            self.connection.send(task)

    def result(self) -> Any:
        """The result of the task that was begun, or a `_Failure`."""
        with _living():
            return self.connection.recv()


@contextmanager
def _living() -> Iterator[None]:
    """A scope that needs a worker to live.

    Raises:
        InputError: it was killed.
    """
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise InputError(
            "expected processes that live until the work is done, got one that was killed, as the system does where "
            "memory is short; run it with --jobs 1"
        ) from error


def results(work: Callable[[T], R], tasks: Sequence[T], jobs: int) -> Iterator[R]:
    """The results of tasks in their order; an error is raised in the place of its result.

    Args:
        work: function of a module, or a partial of one, since it travels to other processes.
        jobs: number of processes; with 1, or a single task, this one does the work.

    Raises:
        InputError: a process was killed.
    """
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        yield from map(work, tasks)
        return
    with _workers(work, jobs) as workers:
        idle, busy = list(workers), dict[Connection, tuple[int, _Worker]]()
        waiting: dict[int, Any] = {}
        begun = 0
        for number in range(len(tasks)):
            while number not in waiting:
                while idle and begun < min(len(tasks), number + AHEAD * jobs):
                    worker = idle.pop()
                    worker.begin(tasks[begun])
                    busy[worker.connection] = begun, worker
                    begun += 1
                for connection in wait(list(busy)):
                    assert isinstance(connection, Connection)
                    done, worker = busy.pop(connection)
                    waiting[done] = worker.result()
                    idle.append(worker)
            result = waiting.pop(number)
            if isinstance(result, _Failure):
                raise result.error from result.cause
            yield result


@contextmanager
def _workers(work: Callable[[Any], Any], jobs: int) -> Iterator[list[_Worker]]:
    """A scope with so many processes; what one is in the middle of at its end is given up, and removed."""
    workers: list[_Worker] = []
    try:
        workers.extend(_Worker(work) for _ in range(jobs))
        yield workers
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()
            worker.connection.close()


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is of the parent, which then ends its workers
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_watch, daemon=True).start()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # there are as many processes as cores
    logging.disable(logging.CRITICAL)  # what libraries tell developers
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    with suppress(EOFError, ConnectionError):  # the parent is gone
        while True:
            task = connection.recv()
            try:
                outcome = work(task)
            except Exception as error:
                if not isinstance(error, InputError | OSError):
                    error.add_note(traceback.format_exc())
                outcome = _Failure(error, error.__cause__)
            connection.send(outcome)


def _watch() -> None:
    """Ends this process when its parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _leave(_number: int, _frame: FrameType | None) -> None:
    """Ends this process as an error would, so that what is half-written is removed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + signal.SIGTERM)
