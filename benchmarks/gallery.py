"""Draws what attacks do to one case: the image, the difference, and its cause - field or movement - with the outlines
of truth and prediction.

    python benchmarks/gallery.py --data data --model model --attack bias_field --attack deformation --out gallery.png
"""

import argparse
from pathlib import Path

import torch

from medseg_attack import registry
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.evaluation.crafting import craft
from medseg_attack.models.checkpoints import load
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics.flows import moved
from medseg_attack.report.figures import Panel, gallery
from medseg_attack.types import Batch, Case, Flow, Image, Setting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--attack", action="append", required=True)
    parser.add_argument("--case", help="its id; by default the one with most organ pixels of the test split")
    parser.add_argument("--out", type=Path, default=Path("gallery.png"))
    args = parser.parse_args()
    data = open_prepared(args.data)
    draw(data, load(args.model, data.task, torch.device("cpu")), args.attack, pick(data, args.case), args.out)


def pick(data: Prepared, case_id: str | None) -> Case:
    """The case of the test split with that id; without an id the one with most organ pixels."""
    cases = [data.read(ref) for ref in data.refs("test") if case_id in (None, ref.id)]
    if not cases:
        raise SystemExit(f"expected a case of the test split, got {case_id!r}; leave out --case for the largest organs")
    return max(cases, key=lambda case: int(case.target[list(data.task.scored)].sum()))


def draw(data: Prepared, model: SegModel, texts: list[str], case: Case, file: Path) -> None:
    """Attacks the case and draws the results into `file`."""
    batch, scored = Batch.of([case]), list(data.task.scored)
    model = model.bind(Setting(data.task, batch.cases))

    def panel(title: str, image: Image, before: Image, flow: Flow | None = None) -> Panel:
        truth = moved(batch.target, flow, data.task.exclusive)
        with torch.no_grad():
            prediction = model.decide(model(image))
        masks = truth[0, scored].numpy(), prediction[0, scored].numpy()
        arrow = None if flow is None else flow[0].numpy()
        return Panel(title, image[0, 0].numpy(), *masks, batch.image[0, 0].numpy(), before[0, 0].numpy(), arrow)

    attacks = [registry.build(text, "attack") for text in texts]
    clean = panel(case.id, batch.image, batch.image)
    with frozen(model):
        results = sorted(craft(model, batch, attacks, [None] * len(attacks), seed=0), key=lambda result: result.index)
        panels = [panel(texts[each.index], each.image, each.x0, each.flow) for each in results]
    gallery(clean, panels, [data.task.classes[k] for k in scored], file)


if __name__ == "__main__":
    main()
