"""Signs of life: who is at work on a folder, who ended in order and who was lost."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medseg_attack.errors import InputError
from medseg_attack.storage import heartbeats
from medseg_attack.storage.heartbeats import WORKERS, at_work, clear, workers_of

SLEEPER = """
import sys, time
from pathlib import Path
from medseg_attack.storage.heartbeats import at_work
with at_work(Path(sys.argv[1]), "1/2", "cpu", {"run": 3}):
    print("working", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "BEAT", 0.02)


def test_a_worker_is_at_work_until_it_ends(tmp_path: Path, fast: None) -> None:
    with at_work(tmp_path, "0/2", "cuda:1", {"model/run": 8}):
        (worker,) = workers_of(tmp_path)
        assert (worker.state, worker.record.part, worker.record.device) == ("at work", "0/2", "cuda:1")
        assert worker.record.cases == {"model/run": 8}
        time.sleep(0.1)
        (later,) = workers_of(tmp_path)
        assert later.silence < 0.1  # it was touched again
    (worker,) = workers_of(tmp_path)
    assert worker.state == "ended"
    assert worker.record.ended is not None


def test_a_worker_that_fails_has_ended(tmp_path: Path) -> None:
    with pytest.raises(InputError), at_work(tmp_path, "0/1", "cpu", {}):
        raise InputError("expected a, got b; do c")
    assert [worker.state for worker in workers_of(tmp_path)] == ["ended"]


def test_a_killed_worker_is_lost(tmp_path: Path, fast: None) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"working\n"
        process.send_signal(signal.SIGKILL)
    time.sleep(0.1)
    assert [worker.state for worker in workers_of(tmp_path)] == ["lost"]


def test_of_another_machine_only_its_silence_is_known(tmp_path: Path) -> None:
    record = {"host": "node-7", "pid": 1, "part": "0/1", "device": "cpu", "started": 0.0, "ended": None, "cases": {}}
    file = tmp_path / WORKERS / "node-7-1.json"
    file.parent.mkdir()
    file.write_text(json.dumps(record))
    for silence, state in ((60, "at work"), (120, "lost")):
        os.utime(file, (time.time() - silence,) * 2)
        assert [worker.state for worker in workers_of(tmp_path)] == [state]


def test_records_go_with_finished_work_and_logs_stay(tmp_path: Path, fast: None) -> None:
    with at_work(tmp_path, "0/1", "cpu", {}):
        clear(tmp_path)
        time.sleep(0.1)
    assert workers_of(tmp_path) == []
    assert not (tmp_path / WORKERS).exists()
    (tmp_path / WORKERS).mkdir()
    (tmp_path / WORKERS / "a.log").write_text("told")
    clear(tmp_path)
    assert (tmp_path / WORKERS / "a.log").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"host": 1}', '{"host": "a", "pid": -1}'])
def test_a_damaged_record_is_refused_by_name(content: str, tmp_path: Path) -> None:
    file = tmp_path / WORKERS / "a.json"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(InputError, match=r"a\.json"):
        workers_of(tmp_path)


def test_names_of_workers_are_names_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "../a b")
    assert heartbeats.worker_name() == f"..-a-b-{os.getpid()}"
