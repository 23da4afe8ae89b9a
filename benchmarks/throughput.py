"""The speed of the loop: slices and passes per second of each attack, and the loop's cost beside the network.

    python benchmarks/throughput.py --model unet_small --size 96 --cases 32

Prints JSON. Quote the ratios within one run: absolute times belong to the machine they were taken on.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from medseg_attack import registry
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.models.segmodel import frozen
from medseg_attack.runtime import pick_device, versions
from medseg_attack.types import Batch, Case, Task, Window

TASK = Task("benchmark", ("a", "b", "c"))
ATTACKS = ["noise", "fgsm", "pgd(steps=10)", "mi_fgsm(steps=10)"]


def batch(cases: int, size: int, device: torch.device) -> Batch:
    """Random slices with random masks."""
    draw = torch.Generator().manual_seed(0)
    made = [
        Case(
            f"c{i}",
            f"v{i}",
            f"p{i}",
            torch.rand(1, size, size, generator=draw),
            torch.rand(3, size, size, generator=draw) < 0.3,
            (1.0, 1.0),
            Window(0, 1),
        )
        for i in range(cases)
    ]
    return Batch.of(made, device)


def median_seconds(work: Callable[[], object], device: torch.device, runs: int = 5) -> float:
    """The median time of `runs` calls, in seconds, after one that warms up."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--model", default="unet_small")
    options.add_argument("--size", type=int, default=96)
    options.add_argument("--cases", type=int, default=16)
    options.add_argument("--device", default="auto")
    args = options.parse_args()
    device = pick_device(args.device)
    model = registry.build(args.model, "model")(TASK).to(device)
    one = batch(args.cases, args.size, device)

    def forward_backward() -> torch.Tensor:
        x = one.image.clone().requires_grad_()
        return torch.autograd.grad(model(x).sum(), x)[0]

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return model(one.image)  # type: ignore[no-any-return]

    with frozen(model):
        plain = {"forward": median_seconds(forward, device), "backward": median_seconds(forward_backward, device)}
        plain["backward"] -= plain["forward"]
        rows = []
        for text in ATTACKS:
            attack = registry.build(text, "attack")
            counted = attack_chunk(model, [one], [attack])[0].rows
            seconds = median_seconds(partial(attack_chunk, model, [one], [attack]), device)
            floor = (counted[0].forwards + 2) * plain["forward"] + counted[0].backwards * plain["backward"]
            rows.append(
                {
                    "attack": text,
                    "slices_per_second": args.cases / seconds,
                    "seconds": seconds,
                    "over_the_network_alone": seconds / floor,
                }
            )
        budgets = [registry.with_eps(registry.build("fgsm", "attack"), n / 255) for n in range(1, 9)]
        together = median_seconds(lambda: attack_chunk(model, [one], budgets), device)
        apart = median_seconds(lambda: [attack_chunk(model, [one], [attack]) for attack in budgets], device)
    shape = {"model": args.model, "size": args.size, "cases": args.cases, "device": str(device)}
    shared = {"eight_budgets_together_over_apart": together / apart}
    print(json.dumps({**shape, "attacks": rows, **shared, "versions": versions()}, indent=2))


if __name__ == "__main__":
    main()
