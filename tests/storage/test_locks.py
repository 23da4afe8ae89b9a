"""Locks of folders: of two writers one waits, and a killed one holds nothing."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from medseg_attack.storage import locks
from medseg_attack.storage.json_files import write_json
from medseg_attack.storage.locks import LOCK, is_abandoned, locked

HOLD = """
import sys, time
from pathlib import Path
from medseg_attack.storage.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def test_a_lock_is_waited_for_and_ends_with_a_killed_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "out"
    process = holder(folder)
    killer = threading.Timer(0.5, lambda: os.kill(process.pid, signal.SIGKILL))
    killer.start()
    start = time.monotonic()
    with locked(folder) as lock:
        assert time.monotonic() - start > 0.3
        assert lock.is_alone()
        assert (folder / LOCK).exists()
    assert process.wait() == -signal.SIGKILL
    assert "waiting for another process" in caplog.text
    assert list(folder.iterdir()) == []  # it was there before


def test_a_folder_in_which_nothing_was_written_goes_again(tmp_path: Path) -> None:
    with locked(tmp_path / "new"):
        pass
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "old"):
        pass
    with locked(tmp_path / "full"):
        (tmp_path / "full" / "a").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "full", "old"]


def test_shared_locks_know_whether_they_are_alone(tmp_path: Path) -> None:
    with locked(tmp_path, shared=True) as one:
        with locked(tmp_path, shared=True) as other:
            assert not one.is_alone()
            assert not other.is_alone()
        assert one.is_alone()


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).symlink_to(tmp_path / "elsewhere")
    with locked(tmp_path / "out"):
        assert not (tmp_path / "elsewhere").exists()


def test_a_folder_is_abandoned_once_its_writer_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert not is_abandoned(folder)
    process = holder(folder)
    assert not is_abandoned(folder)
    process.kill()
    process.wait()
    assert is_abandoned(folder)
    (folder / LOCK).unlink()
    assert not is_abandoned(folder)  # it may be anybody's


def test_a_disk_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "_flock", refuse)
    with locked(tmp_path / "out"):
        write_json(tmp_path / "out" / "a.json", {})
    assert (tmp_path / "out" / "a.json").exists()
