"""Pages as a reader sees them: the text of a section, the cells of its tables."""

import re
from html import unescape
from pathlib import Path

from helpers.command import medattack


def page_of(out: Path, *words: object) -> str:
    """The page that `medattack report` writes about runs, without pictures."""
    medattack("report", *words, "--out", out, "--worst", 0)
    return (out / "index.html").read_text(encoding="utf-8")


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


def nan(value: float | None) -> float:
    """A number of JSON, where null stands for none."""
    return float("nan") if value is None else value
