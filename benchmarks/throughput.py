"""The loop's PGD beside the network's own passes, on slices of a stored scan: the floor, float32 and bfloat16.

    python benchmarks/throughput.py --models "smp('Unet', encoder='resnet18')" "unet(size=())" --cases 2

The floor of `pgd(steps=10)` is what no attack of its kind can undercut: 10 forward and backward passes and the loop's 2
forward passes of the frozen network, channels last, of the same batch. The arms take turns; CPU seconds are of this
process, so that other work on the machine counts less. Images are crafted by the arm's network and scored by the
float32 one. Prints a table and JSON: quote the ratios.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from medseg_attack import registry
from medseg_attack.attacks.composed.bf16 import Bf16, Bf16Model
from medseg_attack.evaluation.crafting import craft
from medseg_attack.evaluation.loop import attack_chunk, decide
from medseg_attack.metrics.harm import harm
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.runtime import deterministic, provenance, versions
from medseg_attack.types import Attack, Batch, Case, Model, Storage, Task, Window

TASK = Task("benchmark", ("a", "b", "c"))
STEPS, LEVELS = 10, 1000


def batch(cases: int, side: int) -> Batch:
    """Slices of 16-bit files with random pixels and masks."""
    draw, slices = torch.Generator().manual_seed(0), []
    for i in range(cases):
        stored = torch.randint(0, LEVELS + 1, (1, side, side), generator=draw).to(torch.int16)
        mask = torch.rand(3, side, side, generator=draw) < 0.3
        image = (stored.double() / LEVELS).float()
        window = Window(0, LEVELS)
        slices.append(Case(f"c{i}", f"v{i}", f"p{i}", image, mask, (1.0, 1.0), window, storage=Storage(stored)))
    return Batch.of(slices)


def floor(model: Model, one: Batch) -> None:
    """The passes of the network alone."""
    for _ in range(STEPS):
        x = one.image.clone().requires_grad_()
        torch.autograd.grad(model(x).sum(), x)
    with torch.no_grad():
        for _ in range(2):
            model(one.image)


def dice(model: SegModel, attack: Attack, one: Batch) -> float:
    """The mean Dice that an attack leaves."""
    (crafted,) = craft(model, one, [attack], [None], 0)
    pred = decide(model, Batch(crafted.image, one.target, one.cases))
    return 1 - float(harm(pred, one.target).mean())


def prepared(text: str, last: bool) -> SegModel:
    """The network with random weights, whose batch norms have the statistics of random images."""
    torch.manual_seed(0)
    model: SegModel = registry.build(text, "model")(TASK)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(2, 1, 224, 224))
    model.eval()
    return model.to(memory_format=torch.channels_last) if last else model


def measured(text: str, one: Batch, repeats: int) -> list[dict[str, float | str]]:
    """CPU seconds of every arm, and their ratio to the floor of the same run."""
    attack = registry.build(f"pgd(steps={STEPS})", "attack")
    plain, last = prepared(text, last=False), prepared(text, last=True)
    half = Bf16(attack)
    arms: dict[str, Callable[[], object]] = {
        "floor": lambda: floor(last, one),
        "pgd": lambda: attack_chunk(last, [one], [attack]),
        "pgd, channels first": lambda: attack_chunk(plain, [one], [attack]),
        "pgd, bf16": lambda: attack_chunk(last, [one], [half]),
        "floor, bf16": lambda: floor(Bf16Model(last), one),
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    with frozen(plain), frozen(last), deterministic(torch.device("cpu")):
        scores = {"pgd": dice(last, attack, one), "pgd, bf16": dice(last, half, one)}  # and they warm up
        for _ in range(repeats):
            for arm, work in arms.items():
                start = time.process_time()
                work()
                seconds[arm].append(time.process_time() - start)
    medians = {arm: statistics.median(of_arm) for arm, of_arm in seconds.items()}
    return [
        {
            "network": text,
            "arm": arm,
            "CPU s": value,
            "over the floor": value / medians["floor"],
            "Dice in float32": scores.get(arm, float("nan")),
        }
        for arm, value in medians.items()
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--models", nargs="+", default=["smp('Unet', encoder='resnet18')", "unet(size=())"])
    options.add_argument("--size", type=int, default=224)
    options.add_argument("--cases", type=int, default=2)
    options.add_argument("--repeats", type=int, default=3)
    args = options.parse_args()
    one, table = batch(args.cases, args.size), []
    for text in args.models:
        for row in measured(text, one, args.repeats):
            table.append(row)
            cells = [each if isinstance(each, str) else f"{each:.3f}" for each in row.values()]
            print("| " + " | ".join(cells) + " |", flush=True)
    print(json.dumps({"table": table, "cases": args.cases, "versions": versions(), **provenance()}, default=str))


if __name__ == "__main__":
    main()
