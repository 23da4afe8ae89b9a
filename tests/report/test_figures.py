"""The gallery is drawn from arrays alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg_attack.errors import InputError
from medseg_attack.report import figures
from medseg_attack.report.colours import COLOURS
from medseg_attack.report.figures import Panel, gallery

SIDE = 48


def panel(title: str, *, factor: float = 1.0, shift: float | None = None) -> Panel:
    clean = np.full((SIDE, SIDE), 0.4, np.float32)
    mask = np.zeros((2, SIDE, SIDE), bool)
    mask[0, 10:30, 10:30] = True  # the second class is nowhere
    flow = None if shift is None else np.full((2, SIDE, SIDE), shift, np.float32)
    return Panel(title, clean * np.float32(factor), mask, np.roll(mask, 3, 1), clean, clean, flow)


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"), float)


def test_a_row_is_drawn_per_attack(tmp_path: Path) -> None:
    for n in (1, 3):
        gallery(panel("case"), [panel("a", factor=1.2)] * n, ["liver", "spleen"], tmp_path / f"{n}.png")
    heights = {n: pixels(tmp_path / f"{n}.png").shape[0] for n in (1, 3)}
    assert heights[3] == 2 * heights[1]  # the case itself is a row, too


def test_truth_is_outlined_and_a_prediction_dashed_in_the_colour_of_the_class(tmp_path: Path) -> None:
    both, none = panel("case"), np.zeros((2, SIDE, SIDE), bool)
    panels = {"truth": replace(both, prediction=none), "prediction": replace(both, truth=none, prediction=both.truth)}
    drawn = {}
    for name, one in panels.items():
        gallery(one, [], ["liver"], tmp_path / f"{name}.png")
        orange = [int(COLOURS[0][place : place + 2], 16) for place in (1, 3, 5)]
        drawn[name] = int((np.abs(pixels(tmp_path / f"{name}.png") - orange).max(2) < 8).sum())
    assert 100 < drawn["prediction"] < 0.9 * drawn["truth"]


@pytest.mark.parametrize("shift", [None, 0.2, 3.0])
def test_a_movement_is_drawn_as_arrows(shift: float | None, tmp_path: Path) -> None:
    gallery(panel("case"), [panel("deformation", shift=shift)], ["liver", "spleen"], tmp_path / "moved.png")
    red = np.array([214, 39, 40])
    drawn = (np.abs(pixels(tmp_path / "moved.png")[:, -500:] - red).max(2) < 8).sum()
    assert drawn == 0 if shift is None else drawn > 100


def test_another_ending_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="change its ending"):
        gallery(panel("case"), [panel("a")], ["liver", "spleen"], tmp_path / "g.docx")
    assert not list(tmp_path.iterdir())


def test_every_format_is_written(tmp_path: Path) -> None:
    for ending in figures.FORMATS:
        gallery(panel("case"), [panel("a")], ["liver", "spleen"], tmp_path / f"g.{ending}")
    assert (tmp_path / "g.pdf").read_bytes().startswith(b"%PDF")
