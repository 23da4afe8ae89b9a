"""Signs of life of the processes that work on one folder: a file each, which is touched as long as its process lives.

They are read on any machine that reaches the folder, so that nothing but the folder says who is at work.
"""

import os
import platform
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from medseg_attack.errors import InputError
from medseg_attack.storage.files import is_part
from medseg_attack.storage.forms import Count, Form
from medseg_attack.storage.json_files import read_json, write_json

WORKERS = "workers"  # a folder within the folder that is worked on; launchers keep the logs of workers there, too
BEAT = 5.0  # seconds between two signs of life
SILENCE = 3 * BEAT  # after which a process of this machine counts as lost
SILENCE_ELSEWHERE = 90.0  # of another machine: network disks show a change up to a minute late


Time: TypeAlias = Annotated[float, Field(ge=0, le=1e11)]  # seconds since 1970 that a calendar has a date for


class WorkerRecord(Form):
    """A file of a worker; `ended` is the time of its orderly end, in seconds since 1970 as `started`.

    `cases` are the cases of each piece of the work, by the folder of the piece.
    """

    host: str
    pid: int = Field(ge=0, lt=2**31)
    part: str
    device: str
    started: Time
    ended: Time | None = None
    cases: dict[str, Count] = Field(default_factory=dict)


@dataclass(frozen=True)
class Worker:
    """A process that works on a folder, or did.

    Attributes:
        name: host and process id, as the parts that it wrote have it.
        silence: seconds since its last sign of life.
        state: lost: it gave no sign of life and did not end in order.
    """

    name: str
    record: WorkerRecord
    silence: float
    state: Literal["at work", "ended", "lost"]


def worker_name() -> str:
    """The name of this process among all that work on a folder."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', platform.node()) or 'host'}-{os.getpid()}"


@contextmanager
def at_work(folder: Path, part: str, device: str, cases: Mapping[str, int]) -> Iterator[None]:
    """A scope in which this process is known to work on a folder.

    Args:
        part: the part of the work that it does, such as 0/4.
        cases: the number of cases of each piece of the whole work, by the piece's folder.
    """
    file = folder / WORKERS / f"{worker_name()}.json"
    facts = {"host": platform.node(), "pid": os.getpid(), "part": part, "device": device, "cases": dict(cases)}
    facts["started"] = time.time()
    write_json(file, facts)
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(file, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if file.exists():  # another process may have cleared the records of finished work
            with suppress(InputError):  # a full disk is the error of the work, not of its record
                write_json(file, facts | {"ended": time.time()})


def _beat(file: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(file)


def clear(folder: Path) -> None:
    """Removes all records of a folder whose work is finished or withdrawn; logs stay."""
    workers = folder / WORKERS
    with suppress(OSError):
        for file in list(workers.iterdir()):
            if file.suffix == ".json" or is_part(file.name):
                file.unlink(missing_ok=True)
        workers.rmdir()  # if there are no logs


def workers_of(folder: Path) -> list[Worker]:
    """The processes that work on a folder or did, in the order of their start.

    Raises:
        InputError: a record is damaged.
    """
    workers = []
    for file in sorted((folder / WORKERS).glob("*.json")):
        try:
            changed = file.stat().st_mtime
            record = WorkerRecord.model_validate(read_json(file, WorkerRecord))
        except (FileNotFoundError, InputError):
            if file.exists():
                raise
            continue  # its work was finished meanwhile
        silence = max(time.time() - changed, 0.0)
        workers.append(Worker(file.stem, record, silence, _state(record, silence)))
    return sorted(workers, key=lambda worker: worker.record.started)


def _state(record: WorkerRecord, silence: float) -> Literal["at work", "ended", "lost"]:
    if record.ended is not None:
        return "ended"
    is_local = record.host == platform.node()
    if is_local and silence > BEAT and not _exists(record.pid):  # containers may share a name and no process ids
        return "lost"
    return "lost" if silence > (SILENCE if is_local else SILENCE_ELSEWHERE) else "at work"


def _exists(pid: int) -> bool:
    """Whether this machine has a process of that id, as far as the system tells without harm."""
    if os.name != "posix" or pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True
