"""Where the CPU time of prepare, train, attack and compare goes, by the function of this package that is at work.

    python benchmarks/cpu_profile.py --before CHECKOUT

Every scenario runs in a process of its own, on one thread: every 2 ms of CPU time go to the innermost function of the
package on the stack, to the network's forward pass, or to its backward pass. Attacks run on slices of a synthetic
UW-Madison set through the small network, whose passes are few, so that what stands beside them shows. Prints a table;
--out writes it as a page. Shares of one run are what to quote. (A file called profile.py would hide Python's module of
that name from those beside it.)
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
INTERVAL = 0.002  # seconds between two looks at the stack
SHOWN = 0.02  # smallest share that has a line
SLICES, CASES, RUNS = 300, 8, 100
FIRST = 30  # of the slices that are attacked: those before it have no organ
DEPTH = 16  # slices of the volume of the 3-D attack
ATTACKS = {
    "attack, fgsm": "fgsm",
    "attack, pgd": "pgd(steps=10)",
    "attack, strongest": "strongest(gradients=20)",
    "attack, bias_field": "bias_field(steps=10)",
    "attack, pgd, hd95": "pgd(steps=10)",
}
SCENARIOS = ["prepare", "train", *ATTACKS, "attack, pgd, 3-D", "compare"]


@contextmanager
def sampled() -> Iterator[dict[str, float]]:
    """A scope whose CPU seconds are counted by place."""
    seconds: defaultdict[str, float] = defaultdict(float)
    ended, main = threading.Event(), threading.main_thread().ident
    assert main is not None

    def look() -> None:
        before = time.process_time()
        while not ended.wait(INTERVAL):
            now = time.process_time()
            seconds[_place(sys._current_frames()[main])] += now - before
            before = now

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seconds
    finally:
        ended.set()
        thread.join()


def _place(frame: Any) -> str:
    """The innermost function of the package on a stack; the passes of the network are places of their own."""
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_qualname
        if file.startswith("<frozen importlib"):
            return "imports"
        if f"torch{os.sep}autograd{os.sep}" in file and function in ("grad", "backward"):
            return "the network's backward pass, and that of what stands around it"
        _, package, inner = file.partition(f"medseg_attack{os.sep}")
        if package and "site-packages" not in file:
            return "the network's forward pass" if inner.startswith(f"models{os.sep}") else f"`{inner}`: {function}"
        frame = frame.f_back
    return "outside of the package"


def scenario(name: str, work: Path) -> Callable[[], None]:
    """The work of a scenario, with what it needs made beforehand."""
    import torch

    from medseg_attack import registry
    from medseg_attack.data.prepared.reading import open_prepared
    from medseg_attack.evaluation.loop import PendingRun, run_attacks
    from medseg_attack.models.segmodel import frozen
    from medseg_attack.runs.folder import RunFolder

    out = Path(tempfile.mkdtemp(dir=work))
    if name == "prepare":
        return lambda: command("prepare", work / "uw", "--format", "uw_madison(drop='none')", "--out", out / "data")
    if name == "compare":
        return lambda: command("compare", work / "runs", "--json")
    data = open_prepared(work / ("volume" if "3-D" in name else "data"))
    if name == "train":
        words = ("train", "--data", work / "data", "--model", "unet_small(size=(224, 224))", "--epochs", 1)
        return lambda: command(*words, "--out", out / "model")
    torch.manual_seed(0)
    dims = 3 if "3-D" in name else 2
    text = "monai(UNet, window=(16, 96, 96))" if dims == 3 else "unet_small(size=(224, 224))"
    model = registry.build(text, "model")(data.task)
    refs = data.refs("all", dims=dims)[slice(1) if dims == 3 else slice(FIRST, FIRST + CASES)]
    attack = registry.build(ATTACKS.get(name, "pgd(steps=2)"), "attack")
    metrics = {"hd95_mm": registry.build("hd95_mm", "metric")} if "hd95" in name else {}

    def work_of_attack() -> None:
        run = PendingRun(attack, RunFolder.open(out / "run", {"attack": name}))
        with frozen(model):
            for _ in run_attacks(model, data, [run], refs, metrics=metrics, batch_size=16):
                pass

    return work_of_attack


def command(*words: object) -> None:
    """Runs a command line in this process, without what it prints."""
    from contextlib import redirect_stdout

    from medseg_attack.cli import app

    jobs = ("--jobs", "1") if words[0] == "prepare" else ()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            app([*map(str, words), *jobs, *(() if words[0] == "compare" else ("--no-progress",))])
        except SystemExit as end:
            if end.code:
                raise


def measured(name: str, work: Path, checkout: Path) -> dict[str, float]:
    """CPU seconds of a scenario by place, in a checkout of this package."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(ROOT / "benchmarks" / "cpu_profile.py"), "--only", name, "--work", str(work)]
    result = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return seconds


def write_inputs(work: Path) -> None:
    """Writes the scans, the prepared data and the runs, unless they are there already."""
    from prepare import write_set  # benchmarks/prepare.py and benchmarks/tables.py
    from tables import write_runs

    work.mkdir(parents=True, exist_ok=True)
    for source, data, slices in (("uw", "data", SLICES), ("uw_volume", "volume", DEPTH)):
        write_set(work / source, slices)
        if not (work / data / "dataset.json").exists():
            test = ("--test", 1) if slices == DEPTH else ()
            command("prepare", work / source, "--format", "uw_madison(drop='none')", "--out", work / data, *test)
    write_runs(work / "runs", RUNS)


def lines_of(name: str, now: dict[str, float], before: dict[str, float] | None) -> Iterator[str]:
    """The lines of a scenario: its seconds, then the places that take most."""
    totals = [sum(seconds.values()) for seconds in (now, before) if seconds is not None]
    yield f"| **{name}** | " + " | ".join(f"**{total:.1f} s**" for total in reversed(totals)) + " |"
    for place in sorted(now | (before or {}), key=lambda place: -now.get(place, 0.0)):
        shares = [s.get(place, 0.0) / total for s, total in zip((now, before), totals, strict=False) if s is not None]
        if max(shares) >= SHOWN:
            yield f"| {place} | " + " | ".join(f"{100 * share:.0f} %" for share in reversed(shares)) + " |"


def page(table: list[str]) -> str:
    """The table with what it was measured on."""
    from medseg_attack.runtime import provenance, versions

    facts = ", ".join(f"{key} {value}" for key, value in versions().items() if key in ("python", "torch", "numpy"))
    lines = [
        "# Profile\n",
        f"By `benchmarks/cpu_profile.py`, {provenance()['date'][:10]}, {facts}, on one thread of a machine",
        "that other work shared. Seconds are CPU seconds, percentages shares of them; quote the latter. Attacks run on",
        f"{CASES} slices at 224 x 224 through `unet_small`, the smallest network, and on {DEPTH} slices as a volume",
        "through windows of MONAI's `UNet`.\n",
        *table,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "medattack_profile")
    options.add_argument("--before", type=Path, help="checkout of an older version to run beside this one")
    options.add_argument("--scenarios", nargs="+", default=SCENARIOS)
    options.add_argument("--out", type=Path, help="page to write")
    options.add_argument("--only", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.only:
        work = scenario(args.only, args.work)
        with sampled() as seconds:
            work()
        print(json.dumps(seconds))
        return
    write_inputs(args.work)
    header = ["scenario and place", *(["before"] if args.before else []), "now"]
    table = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    for name in args.scenarios:
        now = measured(name, args.work, ROOT)
        before = measured(name, args.work, args.before) if args.before else None
        table += lines_of(name, now, before)
        print(f"{name}: {sum(now.values()):.1f} s", file=sys.stderr)
        if args.out:  # after each, so that nothing is lost where the time ends
            args.out.write_text(page(table), encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
