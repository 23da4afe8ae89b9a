"""Pictures of what attacks do to one case, and how a figure is written. No torch in here."""

import logging
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medseg_attack.errors import InputError
from medseg_attack.escaping import figure as figure_text
from medseg_attack.report.colours import COLOURS
from medseg_attack.storage.files import require_own, whole

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pixels = NDArray[np.float32]
Masks = NDArray[np.bool_]

FORMATS = ("png", "pdf", "svg")
PIXELS_PER_ARROW = 10


@dataclass(frozen=True, eq=False)
class Panel:
    """One image with its masks, and how it came out of the untouched one.

    Attributes:
        image: (rows, columns), in [0, 1] of the window.
        truth, prediction: (classes, rows, columns).
        clean: the untouched image.
        before: the untouched image after its anatomy moved; it is `clean` where nothing moves.
        flow: (2, rows, columns), from each pixel to the place where its content came from, in pixels; None where
            nothing moves.
    """

    title: str
    image: Pixels
    truth: Masks
    prediction: Masks
    clean: Pixels
    before: Pixels
    flow: Pixels | None = None


def gallery(clean: Panel, attacked: Sequence[Panel], classes: Sequence[str], file: Path) -> None:
    """Draws `gallery_figure` into a file."""
    save(gallery_figure(clean, attacked, classes), file)


def gallery_figure(clean: Panel, attacked: Sequence[Panel], classes: Sequence[str], width: float = 10) -> "Figure":
    """A case, and below it a row per attack: the image with outlines, the difference, and its cause.

    Args:
        classes: names of the masks, in their order.
        width: in inches.
    """
    n_rows = len(attacked) + 1
    figure = empty_figure(width, (0.29 * width + 0.5) * n_rows)
    axes = figure.subplots(n_rows, 3, squeeze=False)
    _outlines(axes[0, 0], clean)
    _legend(axes[0, 1], classes)
    for row, panel in zip(axes[1:], attacked, strict=True):
        _outlines(row[0], panel)
        _difference(row[1], panel)
        _factor(row[2], panel) if panel.flow is None else _movement(row[2], panel.before, panel.flow)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def empty_figure(width: float, height: float) -> "Figure":
    """A figure of that size in inches.

    matplotlib keeps nothing in a home that cannot be written to, and does not say so: it takes a temporary folder.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_band(axis: "Axes", x: str, points: "pd.DataFrame", colour: str, opacity: float) -> None:
    """Draws the band from `low` to `high` over the column x; of one point, where a band has no width, a bar."""
    axis.fill_between(points[x], points["low"], points["high"], color=colour, alpha=opacity, lw=0)
    if points["low"].notna().sum() == 1:
        axis.vlines(points[x], points["low"], points["high"], color=colour, alpha=0.6, lw=1.5)


def require_own_figure(file: Path) -> None:
    """Refuses to overwrite what matplotlib did not draw, and an ending that says no format.

    Raises:
        InputError: the file holds something else, such as a scan, or its ending is of another format.
    """
    require_own(file, re.compile(rb"[Mm]atplotlib"))
    if _ending(file) not in ("", *FORMATS):
        raise InputError(f"expected a file .{', .'.join(FORMATS)} to draw, got {file}; change its ending")


def save(figure: "Figure", file: Path) -> None:
    """Writes a figure; the ending of the file's name says the format, PNG if it has none.

    Raises:
        InputError: of `require_own_figure`.
    """
    require_own_figure(file)
    drawn = BytesIO()  # on a full disk matplotlib's writer of PDF fails at what it cannot close
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a name in a script of few fonts
        figure.savefig(drawn, format=_ending(file) or "png", dpi=150)
    with whole(file) as part:
        part.write_bytes(drawn.getvalue())


def _ending(file: Path) -> str:
    return file.suffix.lower().lstrip(".")


def _points(axis: "Axes") -> int:
    """The size of text: small in a figure as wide as a column."""
    return 9 if axis.get_figure().get_figwidth() > 6 else 6  # type: ignore[union-attr]


def _title(axis: "Axes", text: str) -> None:
    """Sets a title in lines that are no wider than its panel."""
    panel = axis.get_figure().get_figwidth() / 3  # type: ignore[union-attr]
    columns = round(72 * panel / (0.6 * _points(axis)))
    axis.set_title("\n".join(map(figure_text, textwrap.wrap(text, columns))), fontsize=_points(axis))


def _outlines(axis: "Axes", panel: Panel) -> None:
    """The image with the outlines of truth (solid) and prediction (dashed)."""
    axis.imshow(panel.image, cmap="gray", vmin=0, vmax=1)
    for masks, style in ((panel.truth, "solid"), (panel.prediction, "dashed")):
        for i, mask in enumerate(masks):
            if mask.any() and not mask.all():
                colour = COLOURS[i % len(COLOURS)]
                axis.contour(mask.astype(float), [0.5], colors=colour, linestyles=style, linewidths=1)
    _title(axis, panel.title)


def _legend(axis: "Axes", classes: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=COLOURS[i % len(COLOURS)], label=figure_text(name)) for i, name in enumerate(classes)]
    lines += [Line2D([], [], color="0.3", label="truth"), Line2D([], [], color="0.3", ls="--", label="prediction")]
    axis.legend(handles=lines, loc="center left", fontsize=_points(axis), frameon=False)


def _difference(axis: "Axes", panel: Panel) -> None:
    change = panel.image - panel.clean
    most = max(float(np.abs(change).max()), 1e-6)
    axis.imshow(change, cmap="seismic", vmin=-most, vmax=most)
    _title(axis, f"difference, up to {most:.3f}")


def _movement(axis: "Axes", before: Pixels, flow: Pixels) -> None:
    """Arrows from where content came from to where it is."""
    rows, columns = (np.arange(PIXELS_PER_ARROW // 2, n, PIXELS_PER_ARROW) for n in flow.shape[1:])
    y, x = np.meshgrid(rows, columns, indexing="ij")
    longest = float(np.hypot(*flow).max())
    times = max(1, int(PIXELS_PER_ARROW / max(longest, 1e-6)))
    dy, dx = times * flow[:, y, x]
    axis.imshow(before, cmap="gray", vmin=0, vmax=1, alpha=0.4)
    axis.quiver(x + dx, y + dy, -dx, -dy, color="tab:red", angles="xy", scale_units="xy", scale=1, width=0.004)
    enlarged = f", drawn {times} times as long" if times > 1 else ""
    _title(axis, f"movement, up to {longest:.1f} pixels{enlarged}")


def _factor(axis: "Axes", panel: Panel) -> None:
    """The factor by which each pixel changed; 1 where the image is nearly black."""
    factor = np.where(panel.before > 0.02, panel.image / panel.before.clip(0.02), 1.0)
    mapped = axis.imshow(factor, cmap="PiYG", vmin=0.5, vmax=1.5)
    axis.get_figure().colorbar(mapped, ax=axis, shrink=0.8)  # type: ignore[union-attr]
    _title(axis, "factor of each pixel")
