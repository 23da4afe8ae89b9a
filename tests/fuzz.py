"""Damaged files of every kind that medattack reads: `python tests/fuzz.py N [--seed S]`, or `make fuzz N=5000`.

Valid small inputs are mutated by seed and given to the command line, in worker processes. The only rule: exit code 0, 1
or 2, no traceback, no defect, bounded time and memory, and nothing changed outside of `--out`.
"""

import argparse
import hashlib
import json
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helpers.fuzz_kinds import Kind

SECONDS, MEMORY, SPACE = 60, 2 << 30, 8 << 30
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
FAULTS = ("traceback", "control characters", "hang", "crash", "memory", "outside of --out")


@dataclass(frozen=True)
class Outcome:
    """What came of an input.

    Attributes:
        code: exit code of the command; -1: it did not end.
        fault: one of `FAULTS`, or "".
        about: the damage, and what the command wrote last.
    """

    code: int
    fault: str
    about: str


def invoke(words: list[str]) -> tuple[int, str]:
    """Exit code and output of a command; 99 for what escaped it."""
    from typer.testing import CliRunner

    from medseg_attack.cli import app

    result = CliRunner().invoke(app, words, env={"MEDATTACK_PROGRESS": "0"})
    output = result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 99, output + "".join(traceback.format_exception(result.exception))
    return result.exit_code, output


def require_success(*words: object) -> None:
    code, output = invoke([str(word) for word in words])
    assert code == 0, output


def state(root: Path, *out: Path) -> str:
    """A digest of all that lies below `root`, the folders `out` and the seal that `verify` sets aside."""
    lines = []
    for path in sorted(root.rglob("*")):
        if not {path, *path.parents} & {*out} and path.name != "verified.json":
            is_plain = path.is_file() and not path.is_symlink()
            lines.append(f"{path!r} {hashlib.sha256(path.read_bytes()).hexdigest() if is_plain else 'no file'}")
    return hashlib.sha256("\n".join(lines).encode(errors="backslashreplace")).hexdigest()


def tried(kind: "Kind", seed: int, root: Path) -> Outcome:
    """The outcome of an input, whose damage the seed chooses."""
    from helpers.damages import damage

    sandbox = root / "sandbox"
    os.chdir(root)
    shutil.rmtree(sandbox, ignore_errors=True)
    shutil.copytree(kind.folder, sandbox, symlinks=True)
    (root / "how").write_text("the fuzzer's own fault")
    how = damage(sandbox, random.Random(seed))
    (root / "how").write_text(how, errors="backslashreplace")
    os.chdir(sandbox)
    out = [sandbox / "out", *(sandbox / name for name in kind.makes if not _is_something(sandbox / name))]
    before, resident = state(sandbox, *out), _memory("VmRSS")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    code, output = invoke(list(kind.words))
    taken = _memory("VmHWM") - resident
    fault = ""
    if code not in (0, 1, 2) or "Traceback" in output or "defect of medattack" in output:
        fault = "traceback"
    elif taken > MEMORY:
        fault = "memory"
    elif state(sandbox, *out) != before:
        fault = "outside of --out"
    elif CONTROL.search(output):
        fault = "control characters"
    return Outcome(code, fault, f"{how}: {' | '.join(output.strip().splitlines()[-8:])}")


def _is_something(path: Path) -> bool:
    """Whether there is anything but an empty folder."""
    return os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))


def _memory(field: str) -> int:
    """A field of the process's status, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{field}:\s+(\d+)", status)[0]) << 10


def work(pipe: Connection, root: Path) -> None:
    """A worker: writes the valid inputs when it gets a folder, and tries one when it gets a kind and a seed."""
    sys.path.insert(0, str(Path(__file__).parent))
    root.mkdir(exist_ok=True)
    os.environ |= {
        "MEDATTACK_HOME": str(root / "sandbox" / "workspace"),
        "MEDATTACK_MAX_GB": "1",
        "XDG_STATE_HOME": str(root.parent / "state"),
        "TMPDIR": str(root),
    }
    resource.setrlimit(resource.RLIMIT_AS, (SPACE + (64 << 30), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from helpers import fuzz_kinds, fuzz_products  # noqa: F401 - what commands load is no part of their time

    with suppress(EOFError):
        pipe.send("ready")
        while True:
            order = pipe.recv()
            pipe.send(prepared(order, root) if isinstance(order, Path) else tried(*order, root))


def prepared(folder: Path, root: Path) -> "list[Kind]":
    """The kinds, each of whose valid inputs is taken."""
    from helpers.fuzz_kinds import kinds
    from helpers.fuzz_products import products

    every = [*kinds(folder, require_success), *products(folder, require_success)]
    refusals = []
    for kind in every:
        os.chdir(root)
        shutil.rmtree(root / "sandbox", ignore_errors=True)
        shutil.copytree(kind.folder, root / "sandbox", symlinks=True)
        os.chdir(root / "sandbox")
        code, output = invoke(list(kind.words))
        if code not in (0, 1):
            refusals.append(f"{kind.name} is not valid: {output}")
    assert not refusals, "\n".join(refusals)
    os.chdir(root)
    return every


class Worker:
    """A process that tries inputs, and is replaced where it hangs or crashes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process: BaseProcess = context.Process(target=work, args=(other, self.root), daemon=True)
        self.process.start()
        other.close()
        self.pipe.recv()
        self.since = time.monotonic()

    def order(self, what: object) -> None:
        self.pipe.send(what)
        self.since = time.monotonic()

    def lost(self, fault: str) -> Outcome:
        """The outcome of an input that the process did not survive; another one takes its place."""
        if fault == "hang":
            self.process.kill()
        self.process.join()
        how = (self.root / "how").read_text()
        code = self.process.exitcode
        self._start()
        return Outcome(-1, fault, f"{how}: ended with {code}")


def outcomes(workers: list[Worker], orders: Iterator[tuple["Kind", int]]) -> Iterator[tuple["Kind", int, Outcome]]:
    """The outcome of every input, in the order in which they end."""
    busy: dict[Worker, tuple[Kind, int]] = {}
    idle = list(workers)
    while True:
        while idle and (following := next(orders, None)):
            worker = idle.pop()
            busy[worker] = following
            worker.order(following)
        if not busy:
            return
        ready = wait([worker.pipe for worker in busy], timeout=1)
        for worker in list(busy):
            outcome = None
            if worker.pipe in ready:
                try:
                    outcome = worker.pipe.recv()
                except EOFError:
                    outcome = worker.lost("crash")
            elif time.monotonic() - worker.since > SECONDS:
                outcome = worker.lost("hang")
            if outcome:
                yield (*busy.pop(worker), outcome)
                idle.append(worker)


def table(rows: dict[str, Counter[str]]) -> str:
    """Inputs, exit codes and faults of each kind."""
    heads = ("inputs", "exit 0", "exit 1", "exit 2", *FAULTS)
    total: Counter[str] = sum(rows.values(), Counter())
    lines = [f"{'kind':<20} {'  '.join(heads)}"]
    for name, counts in (*rows.items(), ("all", total)):
        lines.append(f"{name:<20} {'  '.join(f'{counts[head]:>{len(head)}}' for head in heads)}")
    return "\n".join(lines)


def main(n: int, seed: int, jobs: int, only: str, say: Callable[[str], None]) -> int:
    """Tries `n` inputs from that seed on; the number of problems."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    rows: dict[str, Counter[str]] = {}
    problems = done = 0
    try:
        workers = [Worker(root / str(number)) for number in range(jobs)]
        workers[0].order(root / "valid")
        every = [kind for kind in workers[0].pipe.recv() if only in ("", kind.name)]
        rows = {kind.name: Counter() for kind in every}
        orders = ((every[i % len(every)], i) for i in range(seed, seed + n))
        start = shown = time.monotonic()
        for kind, i, outcome in outcomes(workers, orders):
            done += 1
            rows[kind.name].update(["inputs", f"exit {outcome.code}", *filter(None, [outcome.fault])])
            if outcome.fault:
                problems += 1
                say(json.dumps(f"{kind.name} {i}: {outcome.fault}: {outcome.about}"))
            now = time.monotonic()
            if now - shown > 10:
                shown = now
                left = (now - start) / done * (n - done) / 60
                say(f"{done} of {n} inputs, {problems} problems, {left:.0f} min left")
    except KeyboardInterrupt:
        say("stopped")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    say(table(rows))
    say(f"{done} inputs, {problems} problems")
    return problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--kind", default="", help="inputs of this kind only")
    arguments = parser.parse_args()
    faults = main(arguments.n, arguments.seed, arguments.jobs, arguments.kind, lambda text: print(text, flush=True))
    sys.exit(faults > 0)
