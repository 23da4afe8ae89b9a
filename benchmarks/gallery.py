"""Draws what attacks do to one case: the image, the difference, and its cause - field or movement - with the outlines
of truth and prediction.

    python benchmarks/gallery.py --data data --model model --attack bias_field --attack deformation --out gallery.png
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from medseg_attack import registry
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.evaluation.crafting import Crafted, craft
from medseg_attack.models.checkpoints import load
from medseg_attack.models.segmodel import frozen
from medseg_attack.numerics.flows import moved
from medseg_attack.types import Batch, Image, Mask, Model

COLUMNS = ("attacked, with truth and prediction", "difference", "what did it")
PIXELS_PER_ARROW = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--attack", action="append", required=True)
    parser.add_argument("--case", help="its id; by default the one with most organ pixels of the test split")
    parser.add_argument("--out", type=Path, default=Path("gallery.png"))
    args = parser.parse_args()
    data = open_prepared(args.data)
    cases = [data.read(ref) for ref in data.refs("test") if args.case in (None, ref.id)]
    case = max(cases, key=lambda one: int(one.target[list(data.task.scored)].sum()))
    batch = Batch.of([case])
    attacks = [registry.build(text, "attack") for text in args.attack]
    model = load(args.model, data.task, torch.device("cpu"))
    figure, axes = plt.subplots(len(attacks) + 1, 3, figsize=(10, 3.4 * (len(attacks) + 1)), squeeze=False)
    with frozen(model):
        drawn(axes[0], case.id, model, batch.image, batch.image, batch.target)
        for axis in axes[0, 1:]:
            axis.set_visible(False)
        for one in craft(model, batch, attacks, [None] * len(attacks), seed=0):
            row, truth = axes[one.index + 1], moved(batch.target, one.flow, data.task.exclusive)
            unit = getattr(one.attack.ball, "unit", "") or "of the window"
            size = f"{args.attack[one.index]}\nof {one.attack.ball.limit:g} {unit}"
            drawn(row, size, model, one.image, batch.image, truth)
            cause(row[2], one)
    figure.tight_layout()
    figure.savefig(args.out, dpi=90)


def drawn(row: np.ndarray, title: str, model: Model, x: Image, image: Image, truth: Mask) -> None:
    """The attacked image with outlines (truth solid, prediction dashed), and how it differs from the case."""
    with torch.no_grad():
        pred = model.decide(model(x))
    row[0].imshow(x[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
    for colour, k in zip(("gold", "cyan", "magenta", "lime"), model.task.scored, strict=False):
        for mask, style in ((truth, "solid"), (pred, "dashed")):
            if mask[0, k].any():
                row[0].contour(mask[0, k].float().numpy(), [0.5], colors=colour, linestyles=style, linewidths=1)
    row[0].set_title(title, fontsize=9)
    change = (x - image)[0, 0]
    most = max(float(change.abs().max()), 1e-6)
    row[1].imshow(change.numpy(), cmap="seismic", vmin=-most, vmax=most)
    row[1].set_title(f"{COLUMNS[1]}, up to {most:.3f}", fontsize=9)
    for axis in row:
        axis.set_axis_off()


def cause(axis: "plt.Axes", found: Crafted) -> None:
    """The movement as arrows (where a pixel's content came from is their tail), else the factor of each pixel."""
    if found.flow is not None:
        flow = found.flow[0].numpy()
        rows, columns = (np.arange(PIXELS_PER_ARROW // 2, n, PIXELS_PER_ARROW) for n in flow.shape[1:])
        y, x = np.meshgrid(rows, columns, indexing="ij")
        longest = float(np.hypot(*flow).max())
        times = max(1, int(PIXELS_PER_ARROW / max(longest, 1e-6)))
        axis.imshow(found.before[0, 0].numpy(), cmap="gray", vmin=0, vmax=1, alpha=0.4)
        axis.quiver(
            x + times * flow[1, y, x],
            y + times * flow[0, y, x],
            -times * flow[1, y, x],
            -times * flow[0, y, x],
            color="tab:red",
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.004,
        )
        drawn_larger = f", drawn {times} times as long" if times > 1 else ""
        axis.set_title(f"movement, up to {longest:.1f} pixels{drawn_larger}", fontsize=9)
        axis.set_axis_off()
        return
    factor = torch.where(found.before > 0.02, found.image / found.before.clamp(min=0.02), 1.0)[0, 0]
    shown = axis.imshow(factor.numpy(), cmap="PiYG", vmin=0.5, vmax=1.5)
    axis.figure.colorbar(shown, ax=axis, shrink=0.8)
    axis.set_title("factor of each pixel", fontsize=9)


if __name__ == "__main__":
    main()
