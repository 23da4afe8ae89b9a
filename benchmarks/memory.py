"""Peak memory of `prepare`, `attack --plan` and `attack` on one CT volume, through sliding windows.

    python benchmarks/memory.py --shape 600 512 512

The volume is drawn: 16-bit values, one organ, in the layout of nnU-Net. The network compares means of 27 voxels with a
threshold, so that the memory is that of the volume and of what is computed from it. Prints a table and JSON: the peak
of each process, the part of it that is no file mapped from the disk (Linux alone), and the peak in sizes of the file's
values.
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

import nibabel
import numpy as np

from medseg_attack.runtime import provenance, versions

NETWORK = """
import torch
from torch import nn

def build():
    network = nn.Sequential(nn.AvgPool3d(3, 1, 1), nn.Conv3d(1, 1, 1))
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


def measured(*words: str) -> tuple[str, dict[str, float]]:
    """The output of a command, its seconds and its peaks in MB."""
    start, anonymous = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, "-m", "medseg_attack", *words], stdout=output)
        status = 0
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                anonymous = max([anonymous, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
            except OSError:
                pass
            time.sleep(0.02)
        _, status, usage = ended
        if status:
            raise SystemExit(f"medattack {' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}")
        process.returncode = 0
        output.seek(0)
        seconds = time.perf_counter() - start
        return output.read(), {"s": seconds, "peak, MB": usage.ru_maxrss / 1e3, "without files, MB": anonymous / 1e3}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--shape", type=int, nargs=3, default=(150, 256, 256), help="slices, rows, columns")
    options.add_argument("--attack", default="fgsm")
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "medattack_memory")
    args = options.parse_args()
    shape = tuple(args.shape)
    work = args.work / "x".join(map(str, shape))
    if not (work / "scans" / "dataset.json").exists():
        write_volume(work / "scans", shape)
    for folder in ("data", "runs"):
        shutil.rmtree(work / folder, ignore_errors=True)
    (work / "net.py").write_text(NETWORK)
    prepare = ["prepare", str(work / "scans"), "--format", "decathlon", "--out", str(work / "data"), "--test", "1"]
    attack = ["attack", "--data", str(work / "data"), "--model", MODEL.format(path=work), "--attack", args.attack]
    attack += ["--eps", "4/255", "--out", str(work / "runs"), "--device", "cpu"]
    base = measured("ls", "attacks")[1]
    volume = prod(shape) * 2 / 1e6
    plan = ""
    table = []
    commands = {"prepare": prepare, "attack --plan": [*attack, "--plan", "--json"], "attack": [*attack, "--no-checks"]}
    for name, words in commands.items():
        output, costs = measured(*words, "--no-progress")
        plan = output if "--plan" in words else plan
        table.append({"command": name, **costs, "peak / volume": costs["peak, MB"] / volume})
    table[1]["told, MB"] = json.loads(plan)["memory_mb"]
    columns = [*table[0], "told, MB"]
    print("| " + " | ".join(columns) + " |\n|" + " --- |" + " ---: |" * (len(columns) - 1))
    for row in table:
        cells = [row.get(column, "") for column in columns]
        print("| " + " | ".join(f"{cell:,.1f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")
    print(
        f"\nThe volume: {' x '.join(map(str, shape))} values of 16 bits, {volume:,.0f} MB. `ls attacks` takes "
        f"{base['peak, MB']:,.0f} MB.\n"
    )
    print(json.dumps({"table": table, "versions": versions(), **provenance()}))


if __name__ == "__main__":
    main()
