"""Locks of folders: of two processes that write to one, one waits for the other."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from medseg_attack.errors import InputError
from medseg_attack.escaping import whole_characters
from medseg_attack.storage.files import folder_of, writing

LOCK = ".lock"  # in a folder that a process writes to
_NO_LINK = 0 if sys.platform == "win32" else os.O_NOFOLLOW


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator["Lock"]:
    """A scope in which no other process writes to `folder`: they wait for each other. The folder is made if absent.

    At the end it is removed with those above it that were made, if nothing was written there. The lock ends with the
    process, however that ends. A disk that offers no locks is written to without one.

    Args:
        shared: whether others that share it may write, too.

    Raises:
        InputError: the folder cannot be made, or its path is not UTF-8, which libraries of compiled code do not
            write to.
    """
    if str(folder) != whole_characters(str(folder)):
        raise InputError(f"expected a folder in UTF-8 to write to, got {folder}; choose another --out")
    with ExitStack() as scope:
        with writing(folder):
            scope.enter_context(folder_of(folder / LOCK))
        lock = Lock(folder, shared=shared)
        try:
            yield lock
        finally:
            lock.release()


class Lock:
    """A lock of the system's on the file `.lock` of a folder, which goes with the last process that holds it."""

    def __init__(self, folder: Path, *, shared: bool) -> None:
        self._path = folder / LOCK
        self._descriptor = self._opened("shared" if shared else "sole")

    def is_alone(self) -> bool:
        """Whether no other process shares the lock; from then on none can."""
        if self._descriptor is None or _flock(self._descriptor, "sole", wait=False):
            return True
        _flock(self._descriptor, "shared", wait=True)  # the system gave the lock up to try for the other kind
        return False

    def release(self) -> None:
        if self._descriptor is not None:
            if self.is_alone():
                with suppress(OSError):
                    self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def _opened(self, kind: str) -> int | None:
        while True:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
            except OSError:  # nothing can be written there: whoever writes is refused by name
                return None
            try:
                if not _flock(descriptor, kind, wait=False):
                    logging.getLogger(__name__).warning("waiting for another process that writes %s", self._path.parent)
                    _flock(descriptor, kind, wait=True)
                if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    return descriptor
            except FileNotFoundError:  # the one that was waited for took the file away
                pass
            except OSError:
                os.close(descriptor)
                return None
            os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether another process writes to the folder now."""
    return (folder / LOCK).exists() and not is_abandoned(folder)


def is_abandoned(folder: Path) -> bool:
    """Whether a process that wrote to the folder was killed: its lock is there, and nobody holds it."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | _NO_LINK)
    except OSError:
        return False
    try:
        return sys.platform != "win32" and _flock(descriptor, "sole", wait=False)
    except OSError:  # a disk that offers no locks
        return False
    finally:
        os.close(descriptor)


def _flock(descriptor: int, kind: str, *, wait: bool) -> bool:
    """Whether the system's lock of a file was taken."""
    if sys.platform == "win32":
        return True
    import fcntl

    operation = fcntl.LOCK_SH if kind == "shared" else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, operation if wait else operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
