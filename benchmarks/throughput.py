"""The loop's PGD beside the network's own passes, torchattacks' PGD and itself in bfloat16, on slices of stored scans.

    python benchmarks/throughput.py --models "smp('Unet', encoder='resnet18')" "unet(size=())" --cases 2

The floor of `pgd(steps=10)` is what no attack of its kind can undercut: 10 forward and backward passes and the loop's 2
forward passes of the frozen network of the same batch. torchattacks, where the extra `references` brings it, attacks
the same network by the same cross-entropy with the same steps; one pass more scores its images. It gets the network
twice: with the memory layout that medattack chose (channels last), and with the one that it is built in. The arms take
turns; CPU seconds are of this process, so that other work on the machine counts less. Prints a table and JSON: quote
the ratios.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.attacks.composed.bf16 import Bf16, Bf16Model
from medseg_attack.evaluation.crafting import craft
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.evaluation.outcomes import decide
from medseg_attack.metrics.harm import harm
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.runtime import deterministic, provenance, versions
from medseg_attack.types import Batch, Case, Image, Model, Storage, Task, Window

TASK = Task("benchmark", ("background", "a", "b", "c"), exclusive=True)
STEPS, LEVELS = 10, 255 * 64  # stored values: every budget is a whole number of them
EPS, STEP_SIZE = 8 / 255, 0.25  # of eps: torchattacks' default


def batch(cases: int, side: int) -> Batch:
    """Slices of 16-bit files with random pixels and masks."""
    draw, slices = torch.Generator().manual_seed(0), []
    for i in range(cases):
        stored = torch.randint(0, LEVELS + 1, (1, side, side), generator=draw).to(torch.int16)
        mask = torch.nn.functional.one_hot(torch.randint(4, (side, side), generator=draw), 4).permute(2, 0, 1).bool()
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


def dice(model: SegModel, image: Image, one: Batch) -> float:
    """The mean Dice of images over the classes that tables report."""
    scored = TASK.scored_channels
    pred = decide(model, Batch(image, one.target, one.cases))
    return 1 - float(harm(pred[:, scored], one.target[:, scored]).mean())


def prepared(text: str) -> SegModel:
    """The network with random weights, whose batch norms have the statistics of random images."""
    torch.manual_seed(0)
    model: SegModel = registry.build(text, "model")(TASK)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(2, 1, 224, 224))
    return model.eval()


class Classifier(nn.Module):
    """The network as other libraries ask it: the softmax of its answer is over the classes of a pixel."""

    def __init__(self, model: SegModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Image) -> Tensor:
        grey_copies = image.expand(-1, self.model.in_channels, -1, -1)
        logits: Tensor = self.model.net(self.model.normalise(grey_copies))
        return logits


def measured(text: str, one: Batch, repeats: int) -> list[dict[str, float | str]]:
    """CPU seconds of every arm, and their ratio to the floor of the same run."""
    model = prepared(text)
    attack = registry.build(f"pgd(linf({EPS}), objective=ce, steps={STEPS}, step_size={STEP_SIZE})", "attack")
    half = Bf16(attack)
    arms: dict[str, Callable[[], object]] = {
        "floor": lambda: floor(model, one),
        "pgd": lambda: attack_chunk(model, [one], [attack]),
        "bf16(pgd)": lambda: attack_chunk(model, [one], [half]),
        "floor, bf16": lambda: floor(Bf16Model(model), one),
    }
    crafted: dict[str, Callable[[], Image]] = {
        arm: lambda attack=each: next(craft(model, one, [attack], [None], 0)).image  # type: ignore[misc]
        for arm, each in {"pgd": attack, "bf16(pgd)": half}.items()
    }
    if find_spec("torchattacks"):
        import torchattacks  # type: ignore[import-not-found, unused-ignore]

        labels = one.target.float().argmax(1)
        as_built = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        for arm, network in {
            "torchattacks": model,
            "torchattacks, network as built": as_built.requires_grad_(False),
        }.items():
            other = torchattacks.PGD(Classifier(network), eps=EPS, alpha=STEP_SIZE * EPS, steps=STEPS)
            crafted[arm] = lambda other=other: other(one.image, labels)  # type: ignore[misc]
            arms[arm] = lambda arm=arm, network=network: dice(network, crafted[arm](), one)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    with frozen(model), deterministic(torch.device("cpu")):
        scores = {arm: dice(model, image(), one) for arm, image in crafted.items()}  # and they warm up
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
            "Dice": scores.get(arm, float("nan")),
        }
        for arm, value in medians.items()
    ]


def read_options(about: str | None) -> argparse.Namespace:
    """The networks, the slices and how often each arm is run."""
    options = argparse.ArgumentParser(description=about)
    options.add_argument("--models", nargs="+", default=["smp('Unet', encoder='resnet18')", "unet(size=())"])
    options.add_argument("--size", type=int, default=224)
    options.add_argument("--cases", type=int, default=2)
    options.add_argument("--repeats", type=int, default=3)
    return options.parse_args()


def main() -> None:
    args = read_options(__doc__)
    one, table = batch(args.cases, args.size), []
    for text in args.models:
        for row in measured(text, one, args.repeats):
            table.append(row)
            cells = [each if isinstance(each, str) else f"{each:.3f}" for each in row.values()]
            print("| " + " | ".join(cells) + " |", flush=True)
    print(json.dumps({"table": table, "cases": args.cases, "versions": versions(), **provenance()}, default=str))


if __name__ == "__main__":
    main()
