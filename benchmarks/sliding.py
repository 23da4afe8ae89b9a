"""The cost of the exact gradient through sliding windows: memory and seconds of one step on scans of growing size.

    python benchmarks/sliding.py --slices 32 64 128

Each size runs in a process of its own: through the two passes, with autograd's full graph of the same windows, and on
one window alone, which is what the two passes should cost. Prints a table; memory is what one step (loss, and its
gradient by the image) takes on top of what the process had.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from medseg_attack.models.networks.monai import DynUNet
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.models.sliding_window import SlidingWindow
from medseg_attack.runtime import memory_mb, pick_device
from medseg_attack.threat.objectives.losses import soft_dice
from medseg_attack.types import Task

TASK = Task("benchmark", ("background", "organ"), exclusive=True)
KINDS = ("two passes", "full graph", "one window")


class Full(nn.Module):
    """MONAI's inferer, with the graph of every window kept."""

    def __init__(self, net: nn.Module, size: tuple[int, ...]) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x: Tensor) -> Tensor:
        from monai.inferers import sliding_window_inference

        logits: Tensor = sliding_window_inference(x, self.size, 1, self.net, overlap=0.5, mode="gaussian")
        return logits


def step(model: SegModel, image: Tensor) -> Callable[[], Tensor]:
    """Loss of the whole scan and its gradient."""

    def run() -> Tensor:
        x = image.clone().requires_grad_()
        target = torch.cat((image < 0.5, image >= 0.5), 1)
        return torch.autograd.grad(soft_dice(model(x), target).sum(), x)[0]

    return run


def measure(kind: str, slices: int, side: int, window: int, device: torch.device) -> dict[str, float]:
    """One step, after one on a single window that pays for what later ones have."""
    torch.manual_seed(0)
    net, size = DynUNet()(3, 1, 2, ()), (window,) * 3
    windows = Full(net, size) if kind == "full graph" else SlidingWindow(net, size)
    model = SegModel(windows, TASK, dims=3).to(device)
    grid = size if kind == "one window" else (slices, side, side)
    with frozen(model):
        step(model, torch.rand(1, 1, *size, device=device))()
        work = step(model, torch.rand(1, 1, *grid, device=device))
        start = time.perf_counter()
        return {
            "mb": memory_mb(work, device),
            "seconds": time.perf_counter() - start,
            "voxels": float(slices * side**2),
        }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--slices", type=int, nargs="+", default=[32, 64, 128])
    options.add_argument("--side", type=int, default=64)
    options.add_argument("--window", type=int, default=32)
    options.add_argument("--device", default="auto")
    options.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.kind:
        print(json.dumps(measure(args.kind, args.slices[0], args.side, args.window, pick_device(args.device))))
        return
    print("| scan | " + " | ".join(f"{kind}, MB | s" for kind in KINDS) + " |")
    print("| --- |" + " ---: |" * 2 * len(KINDS))
    for slices in args.slices:
        cells = [f"{slices} x {args.side} x {args.side}"]
        for kind in KINDS:
            words = [__file__, "--kind", kind, "--slices", slices, "--side", args.side, "--window", args.window]
            process = subprocess.run(
                [sys.executable, *map(str, words), "--device", args.device], check=True, capture_output=True, text=True
            )
            cost = json.loads(process.stdout)
            cells += [f"{cost['mb']:.0f}", f"{cost['seconds']:.1f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
