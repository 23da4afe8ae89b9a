"""Time until `medattack` has printed what is known beforehand, beside the libraries that print it.

    python benchmarks/startup.py --repeats 15

The floor is `python -c "import typer, rich.console, rich.table"`. Prints a table and JSON; commands are run in turn, so
that what slows the machine slows all of them alike, and the ratio of the medians is what to quote.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from medseg_attack.runtime import provenance, versions

FLOOR = "import typer, rich.console, rich.table"
COMMANDS = [
    "--help",
    "attack --help",
    "ls metrics",
    "ls balls",
    "ls defences --explain",
    "ls attacks",
    "ls attacks --explain",
]


def seconds(words: list[str], checkout: Path) -> tuple[float, float]:
    """Seconds on the clock and CPU seconds that Python takes with these arguments, in a checkout of this package."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed has been compiled
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    # the checkout is the working folder, too, since that is the first place that `python -m` looks at
    subprocess.run([sys.executable, *words], env=environment, cwd=checkout, stdout=subprocess.DEVNULL, check=True)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--repeats", type=int, default=15)
    options.add_argument("--commands", nargs="+", default=COMMANDS)
    options.add_argument("--before", type=Path, help="checkout of an older version to run beside this one")
    args = options.parse_args()
    root = Path(__file__).parents[1]
    arms = {"floor": (["-c", FLOOR], root)}
    for command in args.commands:
        arms[command] = ["-m", "medseg_attack", *command.split()], root
        if args.before:
            arms[f"{command} (before)"] = arms[command][0], args.before
    times: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
    for _ in range(args.repeats):
        for arm, (words, checkout) in arms.items():
            times[arm].append(seconds(words, checkout))
    medians = {arm: tuple(map(statistics.median, zip(*of_arm, strict=True))) for arm, of_arm in times.items()}
    floor = medians["floor"]
    table = [
        {"command": arm, "s": clock, "CPU s": cpu, "times the floor": clock / floor[0], "CPU": cpu / floor[1]}
        for arm, (clock, cpu) in medians.items()
    ]
    print("| " + " | ".join(table[0]) + " |\n| --- |" + " ---: |" * (len(table[0]) - 1))
    for row in table:
        print("| " + " | ".join(f"{each:.3f}" if isinstance(each, float) else each for each in row.values()) + " |")
    print(json.dumps({"table": table, "repeats": args.repeats, "versions": versions(), **provenance()}))


if __name__ == "__main__":
    main()
