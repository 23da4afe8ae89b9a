"""Work for worker processes, which must be able to import it."""

import errno
import os
import signal
import time
from pathlib import Path

from medseg_attack.errors import InputError
from medseg_attack.storage.files import whole


def slower_first(number: int) -> int:
    """The square, the later the smaller the number."""
    time.sleep(0.05 * max(0, 4 - number))
    return number**2


def logged(folder: Path, number: int) -> int:
    """The number, of which a file is left behind; the first takes its time."""
    (folder / str(number)).touch()
    time.sleep(0.5 if number == 0 else 0)
    return number


def failing(number: int) -> int:
    """The number, but for 2 and 3; the error of 3 is there first."""
    if number == 2:
        time.sleep(0.3)
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise InputError("expected room, got none of it for 2; free some") from error
    if number == 3:
        raise InputError("expected 2 first, got 3; wait")
    return number


def broken(number: int) -> int:
    return number // 0


def killed(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def written_slowly(folder: Path, number: int) -> int:
    """The number, while a file is written for a minute."""
    with whole(folder / f"{number}.bin") as part:
        part.write_bytes(b"half")
        (folder / f"pid{os.getpid()}").touch()
        time.sleep(60)
    return number
