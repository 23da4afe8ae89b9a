"""Kills commands with SIGKILL at random moments, starts them again, and compares what they leave with a quiet run.

`make kills` runs 100, `make slow` a few (tests/test_kills.py). In 40 % of them two processes write to one folder.
Commands are forked from a process that has loaded what they need, since most kills would hit the import otherwise.
"""

import argparse
import csv
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.losses  # noqa: F401 - loaded before the forks, as those below
import pyarrow.parquet as pq
import torch

from medseg_attack import registry
from medseg_attack.cli import app
from medseg_attack.evaluation import opening  # noqa: F401 - loaded before the forks
from medseg_attack.evaluation.studies import running  # noqa: F401
from medseg_attack.storage.json_files import DIGEST, is_as_written
from medseg_attack.training import loop  # noqa: F401

PHANTOM = "phantom(patients=6, slices=3, side=32)"
STEPS: dict[str, tuple[str, ...]] = {
    "data": ("prepare", "{root}/scans", "--format", PHANTOM, "--out", "data"),
    "model": ("train", "--data", "data", "--model", "unet_small(channels=(4, 8))", "--epochs", "3", "--out", "model"),
    "out": (
        *("attack", "--data", "data", "--model", "model", "--attack", "fgsm", "--attack", "pgd(steps=2)"),
        *("--split", "all", "--save-adversarial", "all", "--out", "out"),
    ),
}
CLOCKS = {"seconds", "fit_seconds", "date"}
AS_WRITTEN = "has its digest"
PAIRED = 0.4


def start(step: str, root: Path, folder: Path, log: Path) -> int:
    """Forks the command and returns its process id."""
    if pid := os.fork():
        return pid
    code: Any = 70
    try:
        os.chdir(folder)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(n, "w", closefd=False), write_through=True) for n in (1, 2)
        )
        app([word.format(root=root) for word in STEPS[step]])
    except SystemExit as exit:
        code = exit.code
    finally:
        os._exit(code or 0)


def end_of(pid: int) -> int:
    """The exit code of a process, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(step: str, root: Path, folder: Path) -> float:
    """Runs a step undisturbed and returns its seconds."""
    log, begin = root / "log.txt", time.monotonic()
    code = end_of(start(step, root, folder, log))
    if code:
        raise SystemExit(f"{step} in {folder} ended with {code}:\n{log.read_text()[-2000:]}")
    return time.monotonic() - begin


def content(folder: Path) -> dict[str, Any]:
    """All files of a folder, their clock times apart."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        value = json.loads(path.read_text())
        # a digest is of the clock times as well
        has_digest = isinstance(value, dict) and DIGEST in value and is_as_written(value)
        return _timeless(value | {DIGEST: AS_WRITTEN} if has_digest else value)
    if path.suffix == ".csv":
        return [_timeless(row) for row in csv.DictReader(path.read_text().splitlines())]
    if path.suffix == ".parquet":
        return repr(pq.read_table(path).to_pydict())  # where NaN is NaN
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in CLOCKS}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Kill:
    """A step that was killed and run again.

    Attributes:
        paired: whether a second process wrote to the same folder.
        moment: seconds after which the first was killed.
        was_running: whether it had not ended by then.
        problem: what is not as after a quiet run, if anything.
    """

    step: str
    paired: bool
    moment: float
    was_running: bool
    problem: str

    def __str__(self) -> str:
        end = "killed" if self.was_running else "had ended"
        second = ", beside a second process" if self.paired else ""
        return f"{STEPS[self.step][0]} {end} after {self.moment:.2f} s{second}: {self.problem or 'as a quiet run'}"


def trial(rng: random.Random, root: Path, seconds: dict[str, float]) -> Kill:
    """One step, killed at a random moment and run again."""
    step = rng.choice(list(STEPS))
    folder = Path(tempfile.mkdtemp(dir=root))
    for name in list(STEPS)[: list(STEPS).index(step)]:
        (folder / name).symlink_to(root / "quiet" / name)
    paired = rng.random() < PAIRED
    moment = rng.uniform(0, 1.1 * seconds[step] * (1 + paired))
    log = root / "log.txt"
    log.unlink(missing_ok=True)
    first = start(step, root, folder, log)
    others = []
    if paired:
        time.sleep(rng.choice((0, rng.uniform(0, seconds[step]))))
        others.append(start(step, root, folder, log))
    time.sleep(moment)
    os.kill(first, signal.SIGKILL)
    codes = [end_of(first), *map(end_of, others)]
    problem = "" if codes[0] in (0, -signal.SIGKILL) and not any(codes[1:]) else f"exit codes {codes}"
    if not problem:
        try:
            run(step, root, folder)
            problem = "; ".join(_differences(content(root / "quiet" / step), content(folder / step)))
        except SystemExit:
            problem = "the next run failed"
    if problem:
        problem += f"\n{log.read_text()[-2000:]}"
    shutil.rmtree(folder)
    return Kill(step, paired, moment, codes[0] == -signal.SIGKILL, problem)


def _differences(quiet: dict[str, Any], killed: dict[str, Any]) -> list[str]:
    names = sorted(quiet.keys() | killed.keys())
    return [
        f"{name} {'is missing' if name not in killed else 'is left' if name not in quiet else 'differs'}"
        for name in names
        if quiet.get(name) != killed.get(name) or (name in quiet) != (name in killed)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["MEDATTACK_PROGRESS"] = "0"
    torch.set_num_threads(1)
    registry.names("attack")  # loads the modules of every kind
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "quiet").mkdir()
        seconds = {step: run(step, root, root / "quiet") for step in STEPS}
        seconds["data"] = run("data", root, root)  # without the making of the phantom
        kills = []
        for n in range(options.kills):
            kills.append(trial(rng, root, seconds))
            print(f"{n + 1}/{options.kills} {kills[-1]}", flush=True)
    print(summary(kills))
    sys.exit(any(kill.problem for kill in kills))


def summary(kills: list[Kill]) -> str:
    """How many kills there were, of which command, and how many left something else than a quiet run."""
    commands = Counter(STEPS[kill.step][0] for kill in kills)
    return (
        f"{len(kills)} kills ({', '.join(f'{n} of {command}' for command, n in sorted(commands.items()))}), "
        f"{sum(kill.paired for kill in kills)} with two processes in one folder, "
        f"{sum(kill.was_running for kill in kills)} before the end; "
        f"{sum(bool(kill.problem) for kill in kills)} left something else than a quiet run"
    )


if __name__ == "__main__":
    main()
