"""Time and memory of `prepare` on a synthetic set of the size, the names and the csv of the UW-Madison competition.

    python benchmarks/prepare.py --slices 5000 38496 --jobs 1 2

All of it are 85 patients, 259 scans of 144 slices, 15 of 80, and three rows for each slice. Pixels and organs are those
of a few scans, of which the other files are hard links. The set is made once in --work and used again. Prints a table
and JSON. Memory is the most that all processes took together, pages that they share counted once (Linux alone).
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from medseg_attack.data.formats import rle
from medseg_attack.runtime import provenance, versions

ORGANS, PATIENTS, SIDE = ("large_bowel", "small_bowel", "stomach"), 85, 266
LONG, SHORT, N_SHORT, N_SCANS = 144, 80, 15, 274
ALL = (N_SCANS - N_SHORT) * LONG + N_SHORT * SHORT
DRAWN = 4  # scans whose pixels are drawn


def slice_of(scan: int, number: int) -> tuple[Image.Image, list[str]]:
    """Pixels of 16 bits, as smooth and as noisy as an MR, and the run lengths of three organs, absent at the ends."""
    draw = np.random.default_rng([scan, number])
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    body = np.clip(1.2 - 6 * (x**2 + y**2), 0, 1) * (1 + 0.3 * np.sin(9 * x + number / 9) * np.cos(7 * y))
    pixels = (body * 900 + draw.rayleigh(25, (SIDE, SIDE))).astype(np.uint16)
    runs = []
    for organ in range(3):
        middle = draw.uniform(-0.2, 0.2, 2)
        mask = ((y - middle[0]) ** 2 + (x - middle[1]) ** 2 < 0.01) & (20 * (organ + 1) < number < 120)
        runs.append(rle.encode(mask))
    return Image.fromarray(pixels), runs


def write_set(root: Path, slices: int) -> Path:
    """Writes so many slices, unless they are there already."""
    if (root / "train.csv").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    drawn = root / "drawn"
    drawn.mkdir(parents=True)
    rows: dict[tuple[int, int], list[str]] = {}
    for scan in range(DRAWN):
        for number in range(1, LONG + 1):
            picture, rows[scan, number] = slice_of(scan, number)
            picture.save(drawn / f"{scan}_{number}.png")
    with (root / "part.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("id", "class", "segmentation"))
        left = slices
        for scan in count():
            if left == 0:
                break
            name = f"case{scan % PATIENTS + 1}_day{20 * (scan // PATIENTS)}"
            folder = root / "train" / name.partition("_")[0] / name / "scans"
            folder.mkdir(parents=True)
            n = min(LONG if scan < N_SCANS - N_SHORT else SHORT, left)
            for number in range(1, n + 1):
                target = folder / f"slice_{number:04d}_{SIDE}_{SIDE}_1.50_1.50.png"
                os.link(drawn / f"{scan % DRAWN}_{number}.png", target)
                for organ, runs in zip(ORGANS, rows[scan % DRAWN, number], strict=True):
                    table.writerow((f"{name}_slice_{number:04d}", organ, runs))
            left -= n
    (root / "part.csv").rename(root / "train.csv")
    return root


def memory_mb(session: int) -> float:
    """The memory of all processes of a session."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) != session:
                continue
            lines = (folder / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except OSError:  # it has ended
            continue
    return total / 1e3


def measured(source: Path, out: Path, jobs: int) -> tuple[float, float]:
    """Seconds and peak memory in MB of `prepare`."""
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, "-m", "medseg_attack", "prepare", str(source), "--format", "uw_madison(drop='none')"]
    words += ["--out", str(out), "--jobs", str(jobs), "--no-progress", "--json"]
    start, peak = time.perf_counter(), 0.0
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        while process.poll() is None:
            peak = max(peak, memory_mb(process.pid))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"prepare ended with {process.returncode}")
    return time.perf_counter() - start, peak


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--slices", type=int, nargs="+", default=[ALL])
    options.add_argument("--jobs", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "medattack_prepare")
    args = options.parse_args()
    table = []
    for slices in args.slices:
        source = write_set(args.work / str(slices), slices)
        prints = set()
        for jobs in dict.fromkeys(args.jobs):
            out = args.work / f"prepared_{slices}"
            seconds, peak = measured(source, out, jobs)
            prints.add(json.loads((out / "dataset.json").read_text())["fingerprint"])
            table.append(
                {"slices": slices, "jobs": jobs, "s": seconds, "slices / s": slices / seconds, "peak memory, MB": peak}
            )
        if len(prints) > 1:
            raise SystemExit(f"expected one fingerprint, got {', '.join(prints)}")
    print("| " + " | ".join(table[0]) + " |\n|" + " ---: |" * len(table[0]))
    for row in table:
        print(
            "| " + " | ".join(f"{each:,}" if isinstance(each, int) else f"{each:.1f}" for each in row.values()) + " |"
        )
    print(json.dumps({"table": table, "versions": versions(), **provenance()}))


if __name__ == "__main__":
    main()
