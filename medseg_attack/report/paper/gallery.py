"""Scans as a figure for a paper: the worst ones, or one of them under every attack. No torch in here."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medseg_attack.escaping import figure as figure_text
from medseg_attack.report.colours import organ_colours
from medseg_attack.report.figures import Panel, empty_figure, gallery_figure
from medseg_attack.report.page.pictures import WorstScan
from medseg_attack.report.paper.drawings import MM, POINTS
from medseg_attack.report.sheet import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medseg_attack.evaluation.pictures.attacked_scans import AttackedScan, Masks


def gallery(scans: Sequence[tuple[WorstScan, "AttackedScan"]], organs: Sequence[str], width: float) -> "Figure":
    """A row per scan, on the slice that changed most; outlines: truth solid, prediction dashed.

    Args:
        organs: names of the scored classes, in their order.
    """
    from matplotlib.lines import Line2D

    colours = organ_colours(organs)
    figure = empty_figure(width / MM, (width / 3 + 8) * len(scans) / MM + 0.4)
    for row, (worst, scan) in zip(figure.subplots(len(scans), 3, squeeze=False), scans, strict=True):
        n = int((scan.prediction != scan.prediction_attacked).sum((0, 2, 3)).argmax())
        aspect = scan.pixel_mm[0] / scan.pixel_mm[1]
        for axes, image, masks in (
            (row[0], scan.clean, (scan.truth, scan.prediction)),
            (row[1], scan.attacked, (scan.truth_attacked, scan.prediction_attacked)),
        ):
            axes.imshow(image[n], cmap="gray", vmin=0, vmax=1, aspect=aspect)
            _outlines(axes, masks, n, list(colours.values()))
        change = scan.attacked[n] - scan.clean[n]
        most = max(float(np.abs(scan.attacked - scan.clean).max()), 1e-6)
        row[2].imshow(change, cmap="PuOr_r", vmin=-most, vmax=most, aspect=aspect)
        native = f" ({most * scan.width:.3g} {scan.unit})" if scan.unit and scan.width == scan.width else ""
        for axes, title in zip(
            row,
            (
                f"{worst.scan}: Dice {number(worst.clean, 2)}",
                f"attacked: Dice {number(worst.adv, 2)}",
                f"difference, up to {most:.2g}{native}",
            ),
            strict=True,
        ):
            axes.set_title(figure_text(title), fontsize=POINTS - 1)
            axes.set_axis_off()
    lines = [Line2D([], [], color=colour, label=figure_text(organ)) for organ, colour in colours.items()]
    lines += [Line2D([], [], color="0.4", label="truth"), Line2D([], [], color="0.4", ls="--", label="prediction")]
    figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False)
    return figure


def attacks_figure(attacks: Sequence[tuple[str, "AttackedScan"]], organs: Sequence[str], width: float) -> "Figure":
    """Figure of one scan under every attack, on the slice with most organ pixels: a row each, with the change's cause.

    Args:
        attacks: their names, and what each made of the scan.
        organs: names of the scored classes, in their order.
    """
    _, first = attacks[0]
    n = int(first.truth.sum((0, 2, 3)).argmax())
    where = f", slice {first.indices[n] + 1}" if first.n_slices > 1 else ""
    clean = Panel(
        f"{first.scan}{where}",
        first.clean[n],
        first.truth[:, n],
        first.prediction[:, n],
        first.clean[n],
        first.clean[n],
    )
    panels = [
        Panel(
            name,
            scan.attacked[n],
            scan.truth_attacked[:, n],
            scan.prediction_attacked[:, n],
            clean=scan.clean[n],
            before=scan.before[n],
            flow=None if scan.flow is None else scan.flow[:, n],
        )
        for name, scan in attacks
    ]
    return gallery_figure(clean, panels, organs, width / MM)


def _outlines(axes: "Axes", masks: Sequence["Masks"], n: int, colours: Sequence[str]) -> None:
    for of_kind, style in zip(masks, ("solid", "dashed"), strict=True):
        for colour, mask in zip(colours, of_kind[:, n], strict=False):
            if mask.any() and not mask.all():
                axes.contour(mask.astype(float), [0.5], colors=colour, linestyles=style, linewidths=0.8)
