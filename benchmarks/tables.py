"""CPU seconds and memory that `compare` takes for many runs, of rows as the UW-Madison data give them.

    python benchmarks/tables.py --runs 10 100 1000

A run has 24 scans of 12 patients, 144 slices and 3 organs each: 10,368 rows, in a part per scan. Prints a table and
JSON; runs are made once in --work and used again. The first column is the time that the part files alone take to be
read, which is the floor.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from medseg_attack.runs.folder import RunFolder
from medseg_attack.runtime import provenance, versions

ORGANS, SLICES, SCANS, PATIENTS = ("large_bowel", "small_bowel", "stomach"), 144, 24, 12
ATTACKS = ("noise", "fgsm", "pgd", "apgd", "bim")
FLOOR = """
import pathlib, sys
import pandas, pyarrow.parquet as pq
for file in pathlib.Path(sys.argv[1]).rglob("*.parquet"):
    pq.read_table(file)
"""


def rows_of_scan(scan: int, seed: int) -> pa.Table:
    """Random rows of one scan; counts are those of organs of some thousand pixels."""
    draw, n = np.random.default_rng([seed, scan]), SLICES * len(ORGANS)
    volume, patient = f"case{scan // 2 + 100}_day{scan % 2 * 20}", f"case{scan // 2 + 100}"
    target = draw.integers(0, 3000, n) * (draw.random(n) < 0.5)
    clean, adv = (np.maximum(0, target + draw.integers(-200, 100, n)) for _ in range(2))
    zero, eps = np.zeros(n, int), np.full(n, 4 / 255)
    columns = {
        "case": np.repeat([f"{volume}_slice_{i:04d}" for i in range(SLICES)], len(ORGANS)),
        "volume": np.repeat(volume, n),
        "group": np.repeat(patient, n),
        "cls": np.tile(ORGANS, SLICES),
        "n_target": target,
        "n_clean": clean,
        "hit_clean": (0.9 * np.minimum(target, clean)).astype(int),
        "n_adv": adv,
        "hit_adv": (draw.random(n) * np.minimum(target, adv)).astype(int),
        "size": eps,
        "linf": eps,
        "forwards": zero + 22,
        "backwards": zero + 20,
        "n_target_adv": target,
        "budget": eps,
        "width": np.full(n, 255.0),
        "level": np.full(n, 1 / 255),
        "noise": draw.random(n),
        "z_mm": np.full(n, 3.0),
        "y_mm": np.full(n, 1.5),
        "x_mm": np.full(n, 1.5),
        **{f"{axis}_{when}": 112 * (clean if when == "clean" else adv) for when in ("clean", "adv") for axis in "zyx"},
    }
    return pa.table(columns)


def write_runs(folder: Path, runs: int) -> None:
    """Writes runs of several models and attacks below `folder`, those that are not there yet.

    Every hundred lies in a folder of its own; all but the first are hard links, to be written in seconds.
    """
    for run in range(runs):
        model, attack = f"unet_{run % 100 // 25:02d}", ATTACKS[run % 5]
        name = f"{model}-{run % 100 // 25:06x}/{run % 25:02d}_{attack}"
        path = folder / f"{run // 100:02d}" / name
        if (path / "run.json").exists():
            continue
        if run >= 100:
            shutil.copytree(folder / "00" / name, path, copy_function=os.link)
            continue
        hashes = {"weights": f"{run // 25:064x}", "data": "d" * 64, "cases": "c" * 64}
        result = RunFolder.open(path, {"attack": attack, **hashes, "metrics": [], "seed": run})
        for scan in range(SCANS):
            result.write_table(scan, rows_of_scan(scan, run), 1.0, 16)
        facts = {"model": model, "attack": attack, "loss": "bce", "eps": (run % 25 // 5 + 1) / 255, "ball": "linf"}
        facts |= {"cases": SCANS * SLICES, "dims": 2, "data": "uw", "split": "test", "partial": False, "flags": []}
        result.finish({**facts, "seconds": 24.0, "n_parameters": 1_000_000, "label": model})


def measured(words: list[str], checkout: Path) -> tuple[float, float]:
    """CPU seconds and peak memory in GB of Python with these arguments, in a checkout of this package."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
        "use = resource.getrusage(resource.RUSAGE_CHILDREN); print(use.ru_utime + use.ru_stime, use.ru_maxrss)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        cwd=checkout,  # which is the first place that `python -m` looks at
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, peak = result.stdout.split()
    return float(seconds), float(peak) * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--runs", type=int, nargs="+", default=[10, 100])
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "medattack_tables")
    options.add_argument("--before", type=Path, help="checkout of an older version to run beside this one")
    args = options.parse_args()
    checkouts = {"compare": Path(__file__).parents[1]} | ({"compare before": args.before} if args.before else {})
    table = []
    for runs in args.runs:
        folder = (args.work / str(runs)).absolute()
        write_runs(folder, runs)
        arms = {"floor": (["-c", FLOOR, str(folder)], Path.cwd())}
        words = ["-m", "medseg_attack", "compare", str(folder), "--json"]
        arms |= {arm: (words, path) for arm, path in checkouts.items()}
        uses: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
        for _ in range(args.repeats):  # interleaved: what slows the machine slows all arms
            for arm, (words, path) in arms.items():
                uses[arm].append(measured(words, path))
        row: dict[str, float] = {"runs": runs, "rows": runs * SCANS * SLICES * len(ORGANS)}
        for arm, of_arm in uses.items():
            row[f"{arm}, CPU s"], row[f"{arm}, GB"] = map(statistics.median, zip(*of_arm, strict=True))
        row["compare / floor"] = row["compare, CPU s"] / row["floor, CPU s"]
        table.append(row)
    print("| " + " | ".join(table[0]) + " |\n|" + " ---: |" * len(table[0]))
    for row in table:
        cells = [f"{value:,}" if isinstance(value, int) else f"{value:.2f}" for value in row.values()]
        print("| " + " | ".join(cells) + " |")
    print(json.dumps({"table": table, "repeats": args.repeats, "versions": versions(), **provenance()}))


if __name__ == "__main__":
    main()
