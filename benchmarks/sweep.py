"""FGSM of 3 losses at 6 budgets: the loop, which takes a gradient per loss from one pass, beside a loop of cells.

    python benchmarks/sweep.py --models "smp('Unet', encoder='resnet18')" --cases 2

The other loop is the one of tutorials and of the published notebook, from its description: for every loss and budget
the network is asked, the loss goes backward through it (weights get gradients, too), the image takes its step, and the
network is asked again. Both get the same images, budgets and losses; the arms take turns, and CPU seconds are of this
process. Prints a table and JSON: quote the ratios.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch
from throughput import batch, dice, prepared, read_options

from medseg_attack import registry
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.runtime import deterministic, provenance, versions
from medseg_attack.types import Batch

LOSSES = ("ce", "focal", "dice_focal")
BUDGETS = (1, 2, 4, 6, 8, 16)  # of 255


def cell_by_cell(model: SegModel, one: Batch) -> list[float]:
    """The mean Dice of every loss and budget, each from a gradient of its own."""
    scores = []
    for loss in LOSSES:
        objective = registry.build(loss, "objective")
        for eps in BUDGETS:
            x = one.image.clone().requires_grad_()
            model.zero_grad()
            objective(model(x), one.target, 0.0).sum().backward()
            assert x.grad is not None
            scores.append(dice(model, (one.image + eps / 255 * x.grad.sign()).clamp(0, 1), one))
    return scores


def one_pass(model: SegModel, one: Batch) -> list[float]:
    """The same by the loop, which also measures how visible each change is, and stores whole values."""
    specs = [f"fgsm(linf({eps}/255), objective={loss})" for loss in LOSSES for eps in BUDGETS]
    with frozen(model):
        results = attack_chunk(model, [one], [registry.build(spec, "attack") for spec in specs])
    return [statistics.fmean(2 * row.hit_adv / (row.n_target + row.n_adv) for row in each.rows) for each in results]


def measured(text: str, one: Batch, repeats: int) -> dict[str, float | str]:
    """CPU seconds of both, their ratio, and the largest difference of their Dice."""
    model = prepared(text)
    arms: list[Callable[[SegModel, Batch], list[float]]] = [cell_by_cell, one_pass]
    seconds: list[list[float]] = [[], []]
    with deterministic(torch.device("cpu")):
        scores = [arm(model, one) for arm in arms]  # and they warm up
        for _ in range(repeats):
            for arm, of_arm in zip(arms, seconds, strict=True):
                start = time.process_time()
                arm(model, one)
                of_arm.append(time.process_time() - start)
    other, ours = map(statistics.median, seconds)
    gap = max(abs(a - b) for a, b in zip(*scores, strict=True))
    return {"network": text, "cell by cell": other, "the loop": ours, "ratio": other / ours, "largest gap in Dice": gap}


def main() -> None:
    args = read_options(__doc__)
    one, table = batch(args.cases, args.size), []
    for text in args.models:
        table.append(measured(text, one, args.repeats))
        cells = [each if isinstance(each, str) else f"{each:.3f}" for each in table[-1].values()]
        print("| " + " | ".join(cells) + " |", flush=True)
    print(json.dumps({"table": table, "cases": args.cases, "versions": versions(), **provenance()}, default=str))


if __name__ == "__main__":
    main()
