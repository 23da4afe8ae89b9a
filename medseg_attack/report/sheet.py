"""Tables as text: for the terminal, as Markdown, LaTeX or CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd
from rich import box
from rich.table import Table


@dataclass(frozen=True)
class Sheet:
    """A table as text: what every renderer draws.

    Attributes:
        left: how many columns at the left are words; the others are numbers.
        rules: rows after which a line is drawn.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    left: int = 1
    rules: frozenset[int] = field(default_factory=frozenset)


def number(value: float, digits: int = 3) -> str:
    """A score as text; "-" where there is none."""
    return "-" if value != value else f"{round(value, digits) + 0.0:.{digits}f}"  # + 0: no "-0.000"


def between(low: float, high: float) -> str:
    """An interval as text; "-" where there is none."""
    return "-" if low != low else f"{number(low, 2)}-{number(high, 2)}"


def from_to(low: float, high: float, sign: str = "") -> str:
    """An interval that may reach below 0 as text; "-" where there is none."""
    return "-" if low != low else f"{low:{sign}.3f} to {high:{sign}.3f}"


def percent(value: float) -> str:
    """A share as text; "-" where there is none."""
    return "-" if value != value else f"{round(100 * value) + 0:d} %"


def p_value(p: float) -> str:
    """A p-value as text; "-" where there is none."""
    return "-" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"


def rich_table(sheet: Sheet) -> Table:
    """A table for the terminal, at most 100 columns wide; underscores give way to spaces so that heads can wrap."""
    table = Table(
        title=sheet.title,
        caption=sheet.caption,
        box=box.SIMPLE_HEAD,
        padding=0,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    for i, column in enumerate(sheet.columns):
        words = column.replace("_", " ") if i >= sheet.left else column
        justify: Literal["left", "right"] = "left" if i < sheet.left else "right"
        # numbers stay whole; what is too wide for the screen makes the words at the left fold
        table.add_column(words, justify=justify, overflow="fold", width=_widest(sheet, i) if i >= sheet.left else None)
    for i, row in enumerate(sheet.rows):
        same = _repeated(sheet, i)
        table.add_row(*["" if j < same else cell for j, cell in enumerate(row)], end_section=i in sheet.rules)
    return table


def _widest(sheet: Sheet, column: int) -> int:
    words = sheet.columns[column].replace("_", " ").split() if column >= sheet.left else [sheet.columns[column]]
    return max(len(text) for text in [*words, *(row[column] for row in sheet.rows)])


def _repeated(sheet: Sheet, row: int) -> int:
    """The number of a row's first words that are those of the row above: they need not be read again."""
    if row == 0 or row - 1 in sheet.rules:
        return 0
    pairs = zip(sheet.rows[row][: sheet.left], sheet.rows[row - 1], strict=False)
    return next((i for i, (word, above) in enumerate(pairs) if word != above), sheet.left)


def markdown(sheet: Sheet) -> str:
    """A GitHub table."""
    head = ["| " + " | ".join(sheet.columns) + " |"]
    marks = ["---" if i < sheet.left else "---:" for i in range(len(sheet.columns))]
    body = ["| " + " | ".join(row) + " |" for row in sheet.rows]
    return "\n".join([*head, "| " + " | ".join(marks) + " |", *body, "", sheet.caption]) + "\n"


def latex(sheet: Sheet) -> str:
    """A booktabs table."""
    columns = "".join("l" if i < sheet.left else "r" for i in range(len(sheet.columns)))
    lines = [" & ".join(map(_tex, row)) + r" \\" for row in [sheet.columns, *sheet.rows]]
    return (
        "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                lines[0],
                r"\midrule",
                *lines[1:],
                r"\bottomrule",
                r"\end{tabular}",
                rf"\caption{{{_tex(sheet.caption)}}}",
                r"\end{table}",
            ]
        )
        + "\n"
    )


def _tex(text: str) -> str:
    for plain, escaped in (("\\", r"\textbackslash "), ("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("<", "$<$")):
        text = text.replace(plain, escaped)
    return text


def csv_text(table: pd.DataFrame) -> str:
    """All numbers at full precision."""
    buffer = io.StringIO()
    table.to_csv(buffer, index=False, quoting=csv.QUOTE_MINIMAL)
    return buffer.getvalue()
