"""Attacks on a GPU beside the network's own passes: the four networks of arXiv 2401.11224, 3-D windows, training.

    python benchmarks/gpu/measure.py --data DATA --out OUT --seconds 300

The floor of `pgd(steps=10)` is what no attack of its kind can undercut: 10 forward and backward passes and the loop's 2
forward passes of the frozen network, channels last, of the same batch. Writes OUT/gpu.json after every line that it
measures, so that nothing is lost where the time ends, and OUT/gpu.md at the end.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from medseg_attack import registry
from medseg_attack.attacks.composed.bf16 import Bf16, Bf16Model
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.runtime import deterministic, peak_mb, pick_device, provenance, versions
from medseg_attack.training.loop import train
from medseg_attack.training.options import Options, resolve
from medseg_attack.types import Batch, Case, Model, Task, Window

TASK = Task("benchmark", ("a", "b", "c"))
NETWORKS = ("unet", "unet_resnext101", "unet_efficientnet_b7", "unetplusplus_efficientnet_b7")
STEPS = 10
PRECISIONS = ("fp32", "tf32", "bf16")


@contextmanager
def precision_of(name: str, device: torch.device) -> Iterator[None]:
    """The scope of one precision: full float32, or convolutions of TF32 inputs."""
    with deterministic(device):
        torch.backends.cudnn.allow_tf32 = name == "tf32"
        yield


def batch(cases: int, sides: tuple[int, ...], device: torch.device) -> Batch:
    """Random scans with random masks."""
    draw = torch.Generator().manual_seed(0)
    return Batch.of(
        [
            Case(
                f"c{i}",
                f"v{i}",
                f"p{i}",
                torch.rand(1, *sides, generator=draw),
                torch.rand(3, *sides, generator=draw) < 0.3,
                tuple(1.0 for _ in sides),
                Window(0, 1),
            )
            for i in range(cases)
        ],
        device,
    )


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def interleaved(first: Callable[[], object], second: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Median seconds of two works that take turns, three times each after one that warms up."""
    times = [(seconds_of(first, device), seconds_of(second, device)) for _ in range(4)][1:]
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times)


def against_floor(model: SegModel, one: Batch, precision: str, device: torch.device) -> dict[str, Any]:
    """Seconds of the loop's PGD and of its floor, in one precision; the loop scores in float32."""
    attack = registry.build(f"pgd(steps={STEPS})", "attack")
    attacked: Model = model
    if precision == "bf16":
        attacked, attack = Bf16Model(model), Bf16(attack)

    def floor() -> None:
        for _ in range(STEPS):
            x = one.image.clone().requires_grad_()
            torch.autograd.grad(attacked(x).sum(), x)
        with torch.no_grad():
            for _ in range(2):
                attacked(one.image)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with precision_of(precision, device), frozen(model):
        floor_seconds, seconds = interleaved(floor, lambda: attack_chunk(model, [one], [attack]), device)
    n = len(one.cases)
    return {
        "precision": precision,
        "cases": n,
        "floor_cases_per_second": n / floor_seconds,
        "cases_per_second": n / seconds,
        "over_floor": seconds / floor_seconds,
        "peak_mb": peak_mb(device),
    }


def training_lines(data: Path, out: Path, device: torch.device, until: float) -> Iterator[dict[str, Any]]:
    """Epochs of two of the networks for as long as there is time."""
    prepared = open_prepared(data)
    for number, name in enumerate(("unet", "unetplusplus_efficientnet_b7")):
        end = time.monotonic() + (until - time.monotonic()) / (2 - number)
        plan = resolve(Options(model=f"{name}(size=(224, 224))", epochs=1000, batch_size=16), prepared)
        folder = out / f"training-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        records = []
        for record in train(plan, prepared, folder, device):
            records.append(record)
            if time.monotonic() > end:
                break
        seconds = statistics.median(record.seconds for record in records)
        dice = [record.mean_dice for record in records]
        yield {
            "model": name,
            "epochs": len(records),
            "seconds_per_epoch": seconds,
            "val_dice": dice,
            "peak_mb": peak_mb(device),
        }
        shutil.rmtree(folder, ignore_errors=True)


def table(result: dict[str, Any]) -> str:
    """The page, in Markdown."""
    lines = [
        "| network | scan | precision | cases | PGD-10, cases/s | floor, cases/s | over the floor | peak GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']} | {' x '.join(map(str, row['sides']))} | {row['precision']} | {row['cases']} "
        f"| {row['cases_per_second']:.1f} | {row['floor_cases_per_second']:.1f} | {row['over_floor']:.2f} "
        f"| {row['peak_mb'] / 1e3:.1f} |"
        for row in result["attacks"]
    ]
    lines += ["", "| trained | epochs | seconds per epoch | validation Dice, first | last |", "|---|---|---|---|---|"]
    for row in result["training"]:
        first, last = (row["val_dice"][n] or 0.0 for n in (0, -1))
        lines.append(
            f"| {row['model']} | {row['epochs']} | {row['seconds_per_epoch']:.1f} | {first:.3f} | {last:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--seconds", type=float, default=300)
    options.add_argument("--device", default="auto")
    options.add_argument("--sides", type=int, nargs="+", default=[224, 320])
    options.add_argument("--cases", type=int, default=32)
    args = options.parse_args()
    device, begin = pick_device(args.device), time.monotonic()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    result: dict[str, Any] = {"device": name, "versions": versions(), **provenance(), "attacks": [], "training": []}

    def store(part: str, line: dict[str, Any]) -> None:
        result[part].append(line)
        (args.out / "gpu.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(line), flush=True)

    scenes: list[tuple[str, tuple[int, ...], int]]
    scenes = [(network, (side, side), args.cases) for side in args.sides for network in NETWORKS]
    scenes.insert(1, ("monai(SegResNet, window=(96, 96, 96))", (128, 192, 192), 1))
    for text, sides, cases in scenes:
        if time.monotonic() - begin > 0.6 * args.seconds:
            print(f"no time for {text} at {sides}", flush=True)
            continue
        torch.manual_seed(0)
        model = registry.build(text if len(sides) == 3 else f"{text}(size=())", "model")(TASK).to(device)
        if len(sides) == 2:
            model.to(memory_format=torch.channels_last)
        one = batch(cases, sides, device)
        for precision in PRECISIONS:
            store("attacks", {"model": text, "sides": sides, **against_floor(model, one, precision, device)})
    for line in training_lines(args.data, args.out, device, begin + args.seconds):
        store("training", line)
    (args.out / "gpu.md").write_text(table(result), encoding="utf-8")


if __name__ == "__main__":
    main()
