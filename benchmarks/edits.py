"""Whether a network believes in anatomy that was added or removed, and what else an edit changes.

    python benchmarks/edits.py --data data --model model --organ lv

Each slice of the test patients that shows the organ has it removed; each slice, another patient's is inserted: without
a learned network, and by the generator of `inpaint`, which is trained once on the training patients, and whose latent
is searched for edits that are believed. Prints a row per edit: shares of edits that are believed, means of the other
measures of `medseg_attack.metrics.edits`, and the Dice of the organ against the moved and the untouched truth. Noise
and border of an edit stand out if they differ more from their surroundings than at the same place of the untouched
slice; chance is 0.5. "Noise found" is the share of edits whose noise has a p-value of 0.05 or less, in blocks of 4 x 4
pixels, and "false alarms" that of untouched slices at the same place. Behind each number is its 95 % interval over
patients.

A second table says how well the generator paints boxes of the test patients anew, in whose holes it is known what was
there: the discriminator's accuracy, and the absolute error beside that of the harmonic function of the hole's edge.
"""

import argparse
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.attacks.edits.boxes import Box
from medseg_attack.attacks.edits.inpaint import Inpaint, cut, quality_of
from medseg_attack.attacks.edits.latent_edit import LatentEdit
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.evaluation.fitting import Batches
from medseg_attack.metrics.edits import edge_contrast, measured_edit, noise_contrast, noise_p_value
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
    "noise found": ((0.0, 1.0), ".2f"),
    "false alarms": ((0.0, 1.0), ".2f"),
    "change in pixels": ((-math.inf, math.inf), "+.0f"),
    "Dice, moved truth": ((0.0, 1.0), ".3f"),
    "Dice, untouched truth": ((0.0, 1.0), ".3f"),
}


QUALITY = {  # column of the second table: least and greatest value, digits
    "discriminator accuracy": ((0.0, 1.0), ".2f"),
    "error in the hole": ((0.0, 1.0), ".3f"),
    "error of the harmonic filling": ((0.0, 1.0), ".3f"),
}
SIDE, ALPHA = 4, 0.05  # pixels of a block of noise, and the p-value at which an edit counts as found


def attacks(learned: Mapping[str, Tensor], organ: str) -> Iterator[tuple[str, Attack]]:
    """The edits with their names in the table."""
    for text in ("remove", "insert", "insert(places=8)"):
        separator = "" if text.endswith(")") else "("
        yield text, registry.build(f"{text.removesuffix(')')}{separator or ', '}organ='{organ}')", "attack")
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
        alarms = (alarm(noise_p_value(image, place, SIDE)) for image in (result.image, batch.image))
        numbers = (*shown, *ratios, *contrasts, *alarms, edit.volume, moved, untouched)
        yield {"group": ref.group, **dict(zip(MEASURES, map(float, numbers), strict=True))}


def told_apart(edited: float, untouched: float) -> float:
    """1 where the edited slice has the larger contrast, 1/2 of equal ones; NaN where one is not defined."""
    return math.nan if math.isnan(edited - untouched) else 0.5 * ((edited > untouched) + (edited >= untouched))


def alarm(p: float) -> float:
    """Whether a p-value is one at which an edit counts as found; NaN where it is not defined."""
    return math.nan if math.isnan(p) else float(p <= ALPHA)


def qualities(data: Prepared, generator: nn.Module, discriminator: nn.Module) -> Iterator[dict[str, str | float]]:
    """The patient (`group`) and the quality of a box around each organ of each test slice."""
    for ref in data.refs("test"):
        batch = Batch.of([data.read(ref)])
        organs = batch.target[0, data.task.scored_channels]
        boxes = [Box.around(place) for place in organs if place.any()]
        if not boxes:
            continue
        shown = cut(boxes, organs.to(batch.image).expand(len(boxes), -1, -1, -1))
        quality = quality_of(generator, discriminator, cut(boxes, batch.image.expand(len(boxes), -1, -1, -1)), shown)
        for numbers in zip(quality.accuracy, quality.error, quality.harmonic_error, strict=True):
            yield {"group": ref.group, **dict(zip(QUALITY, map(float, numbers), strict=True))}


def print_header(first: str, columns: Iterable[str]) -> None:
    """The two lines above the rows of a table."""
    names = (first, "number", "patients", *columns)
    print(f"| {' | '.join(names)} |")
    print(f"|---|{'---:|' * (len(names) - 1)}", flush=True)


def row_of(name: str, rows: pd.DataFrame, columns: Mapping[str, tuple[tuple[float, float], str]]) -> str:
    """A row of a table: means over edits or boxes, with intervals over patients."""
    cells = [name, str(len(rows)), str(rows["group"].nunique())]
    cases = rows.assign(cls="", unit=rows["group"])
    for name, (bounds, digits) in columns.items():
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
    with frozen(checkpoints.load(args.model, data.task)) as model:
        batches = Batches.of(data, data.refs("train"), torch.device("cpu"))
        generator, discriminator = Inpaint(steps=args.steps).train(model, batches, 0)
        learned = {name: tensor.detach() for name, tensor in generator.state_dict().items()}
        print_header("edit", MEASURES)
        for name, attack in attacks(learned, args.organ):
            rows = pd.DataFrame(edits(data, model, attack, args.organ))
            print(row_of(f"`{name}`", rows, MEASURES), flush=True)
    print()
    print_header("box", QUALITY)
    rows = pd.DataFrame(qualities(data, generator, discriminator))
    print(row_of("around an organ", rows, QUALITY), flush=True)


if __name__ == "__main__":
    main()
