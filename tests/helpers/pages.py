"""Pages as a reader sees them: the text of a section, the cells of its tables; and results that stand on them."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

from helpers.command import medattack
from helpers.runs import dice_of, write_run


def read_html(file: Path) -> str:
    """The text of a page, without the places where its long names may break."""
    return file.read_text(encoding="utf-8").replace("<wbr>", "")


def page_of(out: Path, *words: object) -> str:
    """The page that `medattack report` writes about runs, without pictures."""
    medattack("report", *words, "--out", out, "--worst", 0)
    return read_html(out / "index.html")


def section(page: str, name: str) -> str:
    (text,) = re.findall(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    return str(text)


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table, heads first."""
    return [
        [
            [unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
            for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        ]
        for table in re.findall(r"<table.*?</table>", text, re.DOTALL)
    ]


def chart_points(page: str) -> list[list[dict[str, Any]]]:
    """The points of the chart of each result of `defend`, `detect` and `certify`, in the order of the page."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return [result["points"] for result in json.loads(data)["results"]]


def nan(value: float | None) -> float:
    """A number of JSON, where null stands for none."""
    return float("nan") if value is None else value


def detection_row() -> dict[str, Any]:
    """The row of clean images in the table of a detector that one patient calibrated."""
    row = {"kind": "clean", "attack": "clean", "eps": "", "patients": 2, "dice": 0.9}
    return row | {f"alarms_{rate}": None for rate in ("0.01", "0.05", "0.1", "0.5")}


def write_detection(folder: Path, **changes: Any) -> Path:
    """The table of a detector on clean images alone, as `medattack detect` writes it."""
    content = {"model": "m", "data": "d", "detector": "entropy", "adaptive": False, "verdict": "not decided"}
    folder.mkdir()
    file = folder / "entropy-a1b2c3.detection.json"
    file.write_text(json.dumps(content | {"calibration_patients": 1, "rows": [detection_row()]} | changes))
    return file


def write_trial(folder: Path, model: str, twin: str, patients: int = 7) -> Path:
    """A trial of a defence as `medattack defend` writes it."""
    for i, part in enumerate(("native", "adaptive", "queries")):
        for j, (name, weights) in enumerate(((twin, "a"), (model, "b"))):
            write_run(folder / part, dice_of(10 * i + j, patients), model=name, weights=weights)
    facts = {"twin": twin, "non_adaptive": {}, "passes": {model: 4, twin: 1}}
    (folder / "native" / "trial.json").write_text(json.dumps(facts))
    return folder
