"""Work of several processes: as if one did it, whatever happens to them."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from helpers import tasks

from medseg_attack.errors import FULL, InputError
from medseg_attack.storage import workers
from medseg_attack.storage.files import errno_of
from medseg_attack.storage.workers import AHEAD, cores, results

PROGRAM = """
import sys
from functools import partial
from pathlib import Path
from helpers.tasks import written_slowly
from medseg_attack.storage.workers import results

try:
    list(results(partial(written_slowly, Path(sys.argv[1])), range(4), 2))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("jobs", [1, 3])
def test_results_come_in_the_order_of_the_tasks(jobs: int) -> None:
    assert list(results(tasks.slower_first, range(7), jobs)) == [0, 1, 4, 9, 16, 25, 36]


def test_no_task_is_begun_long_before_its_turn(tmp_path: Path) -> None:
    for number in results(partial(tasks.logged, tmp_path), range(30), 2):
        begun = max(int(path.name) for path in tmp_path.iterdir())
        assert begun < number + 1 + AHEAD * 2


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_first_error_in_order_is_raised_with_its_cause(jobs: int) -> None:
    done = []
    with pytest.raises(InputError, match="got none of it for 2") as error:
        done.extend(results(tasks.failing, range(9), jobs))
    assert done == [0, 1]
    assert errno_of(error.value.__cause__) in FULL


def test_a_defect_keeps_the_lines_that_raised_it() -> None:
    with pytest.raises(ZeroDivisionError) as error:
        list(results(tasks.broken, range(2), 2))
    assert "number // 0" in "".join(error.value.__notes__)


def test_a_process_that_the_system_kills_is_told_in_a_sentence() -> None:
    with pytest.raises(InputError, match=r"got one that was killed.*--jobs 1"):
        list(results(tasks.killed, range(6), 2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them_and_leave_nothing_half_written(
    tmp_path: Path, number: signal.Signals
) -> None:
    paths = os.pathsep.join(map(str, [Path(__file__).parents[1], Path(workers.__file__).parents[2]]))
    words = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(words, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(list(tmp_path.glob("pid*"))) == 2)
        process.send_signal(number)
        process.wait(10)
        pids = [int(path.name.removeprefix("pid")) for path in tmp_path.glob("pid*")]
        wait_for(lambda: not any(map(is_alive, pids)))
        assert process.returncode in (130, -number)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"pid{pid}" for pid in pids)


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 1),
        ("3:cpu,cpuacct:/\n0::/", {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ("3:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("5:memory:/", {}, 8),
        ("nonsense", {"cpu.max": "what"}, 8),
    ],
)
def test_cores_are_those_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    (tmp_path / "own").write_text(groups + "\n")
    monkeypatch.setattr(workers, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(workers, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert cores() == expected
