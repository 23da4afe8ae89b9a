"""Peak memory of commands on one CT volume, which is attacked through sliding windows, and on many small cases.

    python benchmarks/memory.py --shape 600 512 512 --cases 100 2000 10000

The volume is drawn: 16-bit values, one organ, in the layout of nnU-Net. The network compares means of 27 voxels with a
threshold, so that the memory is that of the volume and of what is computed from it. Small cases are pictures of 32 x 32
pixels. Prints tables and JSON: the peak of each process, and the most of it that is no file mapped from the disk (Linux
alone), also in sizes of the volume in float32.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import nibabel
import numpy as np
from PIL import Image

from medseg_attack.runtime import provenance, versions

Words: TypeAlias = list[str | Path]
QUIET = ("--no-progress",)
NETWORK = """
import torch
from torch import nn

def build():
    network = nn.Sequential(nn.AvgPool{dims}d(3, 1, 1), nn.Conv{dims}d(1, 1, 1))
    with torch.no_grad():
        network[1].weight.fill_(40.0)
        network[1].bias.fill_(-20.0)
    return network
"""
MODEL = "own('{path}/net.py:build', dims=3, window=(96, 96, 96), overlap=0.25, importance='constant')"
DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": [1, 2]},
    "regions_class_order": [1],
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def write_volume(root: Path, shape: tuple[int, int, int]) -> None:
    """A body with an organ and noise, as a compressed NIfTI pair; drawn slice by slice."""
    shutil.rmtree(root, ignore_errors=True)
    slices, rows, columns = shape
    draw = np.random.default_rng(0)
    image, labels = np.empty((columns, rows, slices), np.int16), np.empty((columns, rows, slices), np.uint8)
    x, y = np.ogrid[: 1 : columns * 1j, : 1 : rows * 1j]
    body, organ = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.2, (x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.02
    for z in range(slices):
        labels[..., z] = organ * (slices // 4 < z < slices // 2)
        image[..., z] = np.where(body, 40 + 80 * labels[..., z], -1000) + draw.normal(0, 15, body.shape)
    for folder, name, values in (("imagesTr", "ct_001_0000", image), ("labelsTr", "ct_001", labels)):
        (root / folder).mkdir(parents=True)
        nifti = nibabel.Nifti1Image(values, np.diag([-0.8, -0.8, 1.0, 1.0]))
        nifti.header.set_xyzt_units("mm")
        nibabel.save(nifti, root / folder / f"{name}.nii.gz")
    (root / "dataset.json").write_text(json.dumps(DATASET))


def measured(*words: str | Path) -> tuple[str, dict[str, Any]]:
    """The output of a command, its seconds and its peaks in MB."""
    start, anonymous, resident = time.perf_counter(), 0, 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, "-m", "medseg_attack", *words], stdout=output)
        status = 0
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                status_kib = {line.split()[0]: line.split()[1] for line in lines if line.endswith("kB")}
                anonymous = max(anonymous, int(status_kib.get("RssAnon:", 0)))
                resident = max(resident, int(status_kib.get("VmHWM:", 0)))
            except OSError:
                pass
            time.sleep(0.02)
        _, status, usage = ended
        if status:
            raise SystemExit(f"medattack {' '.join(map(str, words))} ended with {os.waitstatus_to_exitcode(status)}")
        process.returncode = 0
        output.seek(0)
        seconds = time.perf_counter() - start
        # the system's own peak of a process includes that of its parent before it began, which here is 0.6 GB
        peak, own = (resident or usage.ru_maxrss) * 1024 / 1e6, anonymous * 1024 / 1e6  # Linux counts KiB
        return output.read(), {"s": seconds, "peak, MB": peak, "without files, MB": own}


def write_cases(root: Path, n: int) -> None:
    """So many pictures of 32 x 32 pixels with one organ, no two alike."""
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for k in range(n):
        organ = np.zeros((32, 32), bool)
        row, column = draw.integers(4, 20, 2)
        organ[row : row + 8, column : column + 8] = True
        image = np.clip(60 + 120 * organ + draw.normal(0, 10, organ.shape), 0, 255)
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"case{k:05d}.png")
        Image.fromarray(organ.astype(np.uint8)).save(root / "masks" / f"case{k:05d}.png")


def of_a_volume(shape: tuple[int, int, int], work: Path, attack: str, *options: str) -> None:
    """Prints what the commands take on one CT volume."""
    work = work / "x".join(map(str, shape))
    if not (work / "scans" / "dataset.json").exists():
        write_volume(work / "scans", shape)
    data, runs = fresh(work)
    (work / "net.py").write_text(NETWORK.format(dims=3))
    model = ["--model", MODEL.format(path=work), "--device", "cpu"]
    words: Words = [
        "attack",
        "--data",
        data,
        *model,
        "--attack",
        attack,
        "--eps",
        "4/255",
        "--out",
        runs,
        *options,
        *QUIET,
    ]
    table = [
        {"command": "prepare"}
        | measured("prepare", work / "scans", "--format", "decathlon", "--out", data, "--test", "1", *QUIET)[1]
    ]
    plan, costs = measured(*words, "--plan", "--json")
    table.append({"command": "attack --plan"} | costs | {"told, MB": json.loads(plan)["memory_mb"]})
    table.append({"command": f"attack ({attack})"} | measured(*words, "--no-checks")[1])
    float32 = prod(shape) * 4 / 1e6
    for row in table:
        row["float32 volumes"] = row["without files, MB"] / float32
    show(table)
    print(
        f"The volume: {' x '.join(map(str, shape))}, {float32 / 2:,.0f} MB of 16 bits, {float32:,.0f} MB in float32.\n"
    )


def of_cases(n: int, work: Path) -> list[dict[str, Any]]:
    """A row for each command on so many small cases."""
    work = work / f"{n}_cases"
    if len(list((work / "scans" / "masks").glob("*"))) < n:
        write_cases(work / "scans", n)
    data, runs = fresh(work)
    (work / "net.py").write_text(NETWORK.format(dims=2))
    model = f"own('{work}/net.py:build')"
    attack: Words = ["--attack", "fgsm", "--eps", "4/255", "--out", runs, "--device", "cpu", "--no-checks", *QUIET]
    commands: dict[str, Words] = {
        "prepare": ["prepare", work / "scans", "--format", "folder", "--out", data, "--test", "1", *QUIET],
        "attack": ["attack", "--data", data, "--model", model, *attack],
        "compare": ["compare", runs],
    }
    return [{"cases": n, "command": name} | measured(*words)[1] for name, words in commands.items()]


def fresh(work: Path) -> list[Path]:
    """Folders for prepared data and runs, of which nothing is there yet."""
    folders = [work / "data", work / "runs"]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return folders


def show(table: list[dict[str, Any]]) -> None:
    """Prints a table and its JSON."""
    columns = list(dict.fromkeys(column for row in table for column in row))
    print("| " + " | ".join(columns) + " |\n|" + " ---: |" * len(columns))
    for row in table:
        cells = [row.get(column, "") for column in columns]
        print("| " + " | ".join(f"{cell:,.1f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")
    print("\n" + json.dumps({"table": table, "versions": versions(), **provenance()}) + "\n")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--shape", type=int, nargs=3, help="slices, rows, columns of a CT volume")
    options.add_argument("--cases", type=int, nargs="*", default=[], help="numbers of small cases, e.g. 100 2000")
    options.add_argument("--attack", default="fgsm", help="of the volume")
    options.add_argument("--no-control", action="store_true", help="the volume is not attacked by noise, too")
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "medattack_memory")
    args = options.parse_args()
    if args.shape:
        of_a_volume(tuple(args.shape), args.work, args.attack, *(["--no-control"] if args.no_control else []))
    if args.cases:
        show([row for n in args.cases for row in of_cases(n, args.work)])


if __name__ == "__main__":
    main()
