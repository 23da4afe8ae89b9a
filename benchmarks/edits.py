"""Whether a network believes in anatomy that was added or removed, and what else an edit changes.

    python benchmarks/edits.py --data data --model model --organ lv

Each slice of the test patients that shows the organ has it removed; each slice, another patient's is inserted: without
a learned network, and by the generator of `inpaint`, which is trained once on the training patients, and whose latent
is searched for edits that are believed. Prints a row per edit: shares of edits that are believed, means of the other
measures of `medseg_attack.metrics.edits`, and the Dice of the organ against the moved and the untouched truth. Noise
and border of an edit stand out if they differ more from their surroundings than at the same place of the untouched
slice; chance is 0.5. Behind each number is its 95 % interval over patients.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from medseg_attack import registry
from medseg_attack.attacks.edits.inpaint import Inpaint
from medseg_attack.attacks.edits.latent_edit import LatentEdit
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.evaluation.fitting import Batches
from medseg_attack.metrics.edits import edge_contrast, measured_edit, noise_contrast
from medseg_attack.metrics.harm import harm
from medseg_attack.models import checkpoints
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.stats.patients import interval
from medseg_attack.threat.binding import bind
from medseg_attack.types import Attack, Batch, Donors, Setting

MEASURES = {  # column of the table: least and greatest value, digits
    "believed": ((0.0, 1.0), ".2f"),
    "collateral Dice": ((0.0, 1.0), ".3f"),
    "SSIM in the box": ((-1.0, 1.0), ".2f"),
    "noise, log2 ratio": ((-math.inf, math.inf), "+.2f"),
    "seam, log2 ratio": ((-math.inf, math.inf), "+.2f"),
    "noise stands out": ((0.0, 1.0), ".2f"),
    "border stands out": ((0.0, 1.0), ".2f"),
    "change in pixels": ((-math.inf, math.inf), "+.0f"),
    "Dice, moved truth": ((0.0, 1.0), ".3f"),
    "Dice, untouched truth": ((0.0, 1.0), ".3f"),
}


def attacks(data: Prepared, model: SegModel, organ: str, steps: int) -> Iterator[tuple[str, Attack]]:
    """The edits with their names in the table."""
    for text in ("remove", "insert", "insert(places=8)"):
        separator = "" if text.endswith(")") else "("
        yield text, registry.build(f"{text.removesuffix(')')}{separator or ', '}organ='{organ}')", "attack")
    learned = Inpaint(steps=steps).fit(model, Batches.of(data, data.refs("train"), torch.device("cpu")), 0)
    for edit in ("remove", "insert"):
        yield f"inpaint(edit='{edit}')", Inpaint(edit=edit, organ=organ).with_learned(learned)
        for quiet in (0.0, 1.0):
            searched = LatentEdit(edit=edit, organ=organ, aim="believed", quiet=quiet)
            yield f"latent_edit(edit='{edit}', aim='believed', quiet={quiet:g})", searched.with_learned(learned)


def edits(data: Prepared, model: SegModel, attack: Attack, organ: str) -> Iterator[dict[str, str | float]]:
    """The patient (`group`) and the measures of each edit that was made."""
    k = [data.task.classes.index(organ)]
    refs = data.refs("test")
    donors = Donors(data, refs)
    for ref in refs:
        case = data.read(ref)
        batch = Batch.of([case])
        setting = Setting(data.task, batch.cases, donors)
        ready = bind(attack, setting)
        result = ready(model, batch.image, batch.target, [0])
        with torch.no_grad():
            before, after = (model.decide(model(x)) for x in (batch.image, result.image))
        assert result.truth is not None
        if torch.equal(result.truth[:, k], batch.target[:, k]):
            continue
        parts = before[:, k], after[:, k], batch.target[:, k], result.truth[:, k]
        edit = measured_edit(batch.image, result.image, *parts)
        moved, untouched = (1 - harm(after[:, k], truth[:, k]).item() for truth in (result.truth, batch.target))
        ratios = (math.log2(ratio) if 0 < ratio < math.inf else math.nan for ratio in (edit.noise, edit.seam))
        place = (result.image != batch.image).any(1)[0]
        contrasts = (
            told_apart(contrast(result.image, place), contrast(batch.image, place))
            for contrast in (noise_contrast, edge_contrast)
        )
        shown = bool(edit.belief), edit.collateral, edit.similarity
        numbers = (*shown, *ratios, *contrasts, edit.volume, moved, untouched)
        yield {"group": ref.group, **dict(zip(MEASURES, map(float, numbers), strict=True))}


def told_apart(edited: float, untouched: float) -> float:
    """1 where the edited slice has the larger contrast, 1/2 of equal ones; NaN where one is not defined."""
    return math.nan if math.isnan(edited - untouched) else 0.5 * ((edited > untouched) + (edited >= untouched))


def row_of(attack: str, rows: pd.DataFrame) -> str:
    """A row of the table: means over edits, with intervals over patients."""
    cells = [f"`{attack}`", str(len(rows)), str(rows["group"].nunique())]
    cases = rows.assign(cls="", unit=rows["group"])
    for name, (bounds, digits) in MEASURES.items():
        low, high = interval(cases, name, bounds=bounds)
        cells.append(f"{rows[name].mean():{digits}} ({low:{digits}} to {high:{digits}})")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of prepared data")
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained model")
    parser.add_argument("--organ", required=True, help="organ that is removed and inserted")
    parser.add_argument("--steps", type=int, default=2000, help="batches that the generator is trained on")
    args = parser.parse_args()
    data = open_prepared(args.data)
    print(f"| {' | '.join(('edit', 'edits', 'patients', *MEASURES))} |")
    print(f"|---|{'---:|' * (2 + len(MEASURES))}", flush=True)
    with frozen(checkpoints.load(args.model, data.task)) as model:
        for name, attack in attacks(data, model, args.organ, args.steps):
            print(row_of(name, pd.DataFrame(edits(data, model, attack, args.organ))), flush=True)


if __name__ == "__main__":
    main()
