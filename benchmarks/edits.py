"""Whether a network believes in anatomy that was added or removed, and what else an edit changes.

    python benchmarks/edits.py --data data --model model --organ lv

Each slice of the test patients that shows the organ has it removed; each slice, another patient's is inserted. Prints a
row per edit: shares of edits that are believed, means of the other measures of `medseg_attack.metrics.edits`, and the
Dice of the organ against the moved and the untouched truth.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch

from medseg_attack import registry
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.metrics.edits import Edit, measured_edit
from medseg_attack.metrics.harm import harm
from medseg_attack.models import checkpoints
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.threat.binding import bind
from medseg_attack.types import Batch, Donors, Setting


def edits(data: Prepared, model: SegModel, attack: str, organ: str) -> Iterator[tuple[str, Edit, float, float]]:
    """For each edit that was made its patient, its measures, and Dice with the moved and with the untouched truth."""
    k = [data.task.classes.index(organ)]
    refs = data.refs("test")
    donors = Donors(data, refs)
    for ref in refs:
        case = data.read(ref)
        batch = Batch.of([case])
        setting = Setting(data.task, batch.cases, donors)
        ready = bind(registry.build(attack, "attack"), setting)
        with torch.no_grad():
            result = ready(model, batch.image, batch.target, [0])
            before, after = (model.decide(model(x)) for x in (batch.image, result.image))
        if torch.equal(result.truth[:, k], batch.target[:, k]):
            continue
        parts = before[:, k], after[:, k], batch.target[:, k], result.truth[:, k]
        measures = measured_edit(batch.image, result.image, *parts)
        moved, untouched = (1 - harm(after[:, k], truth[:, k]).item() for truth in (result.truth, batch.target))
        yield ref.group, measures, moved, untouched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of prepared data")
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained model")
    parser.add_argument("--organ", required=True, help="organ that is removed and inserted")
    args = parser.parse_args()
    data = open_prepared(args.data)
    print(
        "| edit | edits | patients | believed | collateral Dice | SSIM in the box | noise ratio | moved pixels | Dice |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    with frozen(checkpoints.load(args.model, data.task)) as model:
        for attack in ("remove", "insert", "insert(places=8)"):
            separator = "" if attack.endswith(")") else "("
            spec = f"{attack.removesuffix(')')}{separator or ', '}organ='{args.organ}')"
            rows = list(edits(data, model, spec, args.organ))
            measures = [measured for _, measured, _, _ in rows]
            print(
                f"| `{attack}` | {len(rows)} | {len({group for group, *_ in rows})} "
                f"| {statistics.mean(bool(each.belief) for each in measures):.0%} "
                f"| {statistics.mean(each.collateral for each in measures):.3f} "
                f"| {statistics.mean(each.similarity for each in measures):.2f} "
                f"| {statistics.median(each.noise for each in measures):.2f} "
                f"| {statistics.mean(each.volume for each in measures):+.0f} "
                f"| {statistics.mean(dice for _, _, dice, _ in rows):.3f} (untouched truth: "
                f"{statistics.mean(dice for _, _, _, dice in rows):.3f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
