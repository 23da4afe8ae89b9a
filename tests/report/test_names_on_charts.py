"""Names that are markup stand as text on every chart of a page and on every figure."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert
from helpers.command import medattack
from helpers.runs import dice_of, write_run
from matplotlib.figure import Figure
from matplotlib.text import Text

from medseg_attack.certificates.smoothing.expected_dice import ExpectedDice
from medseg_attack.evaluation.pictures.attacked_scans import AttackedScan
from medseg_attack.report.certificates import certificate_curve
from medseg_attack.report.page.charts import charts
from medseg_attack.report.paper.drawings import DRAWINGS
from medseg_attack.report.paper.gallery import attacks_figure

NAME = """<script>'"[red]a|b\\input{x}Ω$a_b$&amp;"""
CHARTS = charts({NAME: "#000000"}, [NAME])


def fields(node: Any) -> Iterator[tuple[str, str]]:
    """Every field of a chart with its type."""
    if isinstance(node, dict):
        if "field" in node and "type" in node:
            yield node["field"], node["type"]
        for each in node.values():
            yield from fields(each)
    elif isinstance(node, list):
        for each in node:
            yield from fields(each)


@pytest.mark.parametrize("chart", CHARTS)
def test_a_name_is_text_on_every_chart_of_the_page(chart: str) -> None:
    """Each field that is a name holds markup, the axes' among them."""
    spec = CHARTS[chart]
    row = {field: NAME if kind == "nominal" else 0.5 for field, kind in fields(spec)}
    rows = [row | {"chosen": True, "role": "attack"}, {**row, "chosen": False, "role": "control"}]
    drawn = vl_convert.vegalite_to_svg({**spec, "width": 600, "datasets": {"points": rows}})
    root = ET.fromstring(drawn)
    assert "script" not in {element.tag.rpartition("}")[2] for element in root.iter()}
    texts = ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]
    shown = [text for text in texts if text.startswith("<script>")]
    assert all(NAME.startswith(text.rstrip("…")) for text in shown)  # long ones are cut
    assert shown or not {"name", "level"} & row.keys()


def comments(file: Path) -> str:
    """What stands on a figure, whose letters are outlines: matplotlib writes their text beside them."""
    return " ".join(unescape(text) for text in re.findall(r"<!-- (.*?) -->", file.read_text("utf-8"), re.DOTALL))


def without_space(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("kind", sorted({*DRAWINGS} - {"transfer"}))
def test_a_name_is_text_on_every_figure(kind: str, tmp_path: Path) -> None:
    for model, weights in ((NAME, "a"), ("b", "b")):
        facts = {"model": model, "attack": NAME, "loss": NAME, "weights": weights}
        write_run(tmp_path / "runs", dice_of(0, 3)[:, :, :2], organs=(NAME, "b"), **facts)
    medattack("figure", kind, tmp_path / "runs", "--out", tmp_path / "f.svg")
    assert without_space(NAME) in without_space(comments(tmp_path / "f.svg"))


def test_a_name_is_text_on_the_curve_of_compare(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", dice_of(0, 3)[:, :, :2], organs=(NAME, "b"), model=NAME, attack=NAME)
    medattack("compare", tmp_path / "runs", "--plot", tmp_path / "f.svg")
    assert without_space(NAME) in without_space(comments(tmp_path / "f.svg"))


def test_a_name_is_text_on_the_curve_of_a_certificate(tmp_path: Path) -> None:
    bounds = {"clean": 0.9, "value": 0.8, "low": 0.5, "high": 1.0, "cls": NAME, "pixels": 100, "width": 1.0}
    bounds |= {"abstained": 0.0, "information": 0.0}
    rows = pd.DataFrame([{**bounds, "group": "p", "volume": "v", "radius": radius} for radius in (0.01, 0.02)])
    certificate_curve(rows, ExpectedDice(), tmp_path / "f.svg")
    assert without_space(NAME) in without_space(comments(tmp_path / "f.svg"))


def texts(figure: Figure) -> str:
    return without_space(" ".join(text.get_text().replace(r"\$", "$") for text in figure.findobj(Text)))


def test_a_name_is_text_in_the_gallery_of_a_scan() -> None:
    image = np.full((1, 1, 24, 24), 0.5, np.float32)
    mask = np.zeros((1, 1, 24, 24), bool)
    mask[..., 5:15, 5:15] = True
    facts = (image, image, mask, mask, mask, mask, (0,), 1, (1.0, 1.0), 1.0, "")
    scan = AttackedScan(NAME, *facts, is_stored=True, before=image[0])
    figure = attacks_figure([(NAME, scan)], [NAME], 88)
    assert texts(figure).count(without_space(NAME)) == 3  # the scan, the attack, the organ
    figure.canvas.draw()
