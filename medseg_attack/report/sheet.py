"""Tables as text: for the terminal, as Markdown, LaTeX or CSV."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pandas as pd
from pandas.api.types import is_numeric_dtype
from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from medseg_attack import escaping
from medseg_attack.escaping import csv_cell, visible
from medseg_attack.report.colours import organ_colours
from medseg_attack.storage.files import require_own, whole

PARTIAL = "PARTIAL: --limit left cases out."  # in the caption of a table of runs of some of the cases
# no line ends after digits or signs alone: "95 % CI" and "< half" stay whole
_PIECE = re.compile(r"(?:(?:[\d.]+|[^\w\s(,=/-]+)\s+(?=\S))*[^\s(,_=/-]*[(,_=/-]*\s*")


@dataclass(frozen=True)
class Sheet:
    """A table as text: what every renderer draws.

    Attributes:
        left: how many columns at the left are words; the others are numbers.
        rules: rows after which a line is drawn.
        flags: what makes the numbers doubtful, a sentence each.
        organs: those of the task, in their order; a terminal shows a cell or head that is one of them in its colour.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    left: int = 1
    rules: frozenset[int] = field(default_factory=frozenset)
    flags: Sequence[str] = ()
    organs: Sequence[str] = ()


def each_caption_once(sheets: Iterable[Sheet], captions: set[str] | None = None) -> Iterator[Sheet]:
    """Tables that are read one below the other, each caption below the first one that has it.

    Args:
        captions: those that stand above, to which these are added; None: none.
    """
    captions = set() if captions is None else captions
    for sheet in sheets:
        yield replace(sheet, caption="") if sheet.caption in captions else sheet
        captions.add(sheet.caption)


def number(value: float, digits: int = 3) -> str:
    """A score as text; "-" where there is none."""
    return "-" if value != value else f"{round(value, digits) + 0.0:.{digits}f}"  # + 0: no "-0.000"


def between(low: float, high: float) -> str:
    """An interval as text; "-" where there is none."""
    return "-" if low != low else f"{number(low, 2)}-{number(high, 2)}"


def signed(value: float, digits: int = 3) -> str:
    """A change as text, with its sign; "-" where there is none.

    >>> signed(-0.0004), signed(0.25, 1)
    ('+0.000', '+0.2')
    """
    return "-" if value != value else f"{round(value, digits) + 0.0:+.{digits}f}"  # + 0: no "-0.000"


def from_to(low: float, high: float) -> str:
    """An interval that may reach below 0 as text; "-" where there is none."""
    return "-" if low != low else f"{number(low)} to {number(high)}"


def from_to_signed(low: float, high: float, digits: int = 3) -> str:
    """An interval of a change as text, with signs; "-" where there is none."""
    return "-" if low != low else f"{signed(low, digits)} to {signed(high, digits)}"


def percent(value: float) -> str:
    """A share as text; "-" where there is none."""
    return "-" if value != value else f"{round(100 * value) + 0:d} %"


def p_value(p: float) -> str:
    """A p-value as text; "-" where there is none."""
    return "-" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"


def rich_table(sheet: Sheet, width: int = 100) -> Table:
    """A table for the terminal, at most `width` columns wide; underscores in heads of numbers give way to spaces.

    Words wrap between words and at punctuation, numbers stay whole.
    """
    table = Table(
        title=_title(visible(sheet.title), width),
        box=box.SIMPLE_HEAD,
        padding=0,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    cells = _terminal_cells(sheet)
    widths = _widths(cells, sheet.left, width)
    table.caption = Text("\n".join(escaping.wrap(visible(sheet.caption), _taken(widths))))
    colours = {_words(organ): colour for organ, colour in organ_colours(sheet.organs).items()}

    def text(cell: str, column: int) -> Text:
        return _wrapped(cell, widths[column], colours.get(_words(cell), ""))

    for i, (head, *_) in enumerate(zip(*cells, strict=True)):
        justify: Literal["left", "right"] = "left" if i < sheet.left else "right"
        table.add_column(text(head, i), justify=justify, overflow="fold", width=widths[i])
    for i, row in enumerate(cells[1:]):
        same = _repeated(sheet, i)
        texts = [Text("") if j < same else text(cell, j) for j, cell in enumerate(row)]
        table.add_row(*texts, end_section=i in sheet.rules)
    return table


def _title(text: str, width: int) -> Text:
    """A title that stays in its line where a terminal of that many columns has room, however narrow the table."""
    is_line = cell_len(text) <= width
    return Text(text, no_wrap=is_line, overflow="ignore" if is_line else "fold")


def _words(organ: str) -> str:
    """An organ's name as heads have it."""
    return visible(organ).replace("_", " ")


def fits(sheet: Sheet, width: int = 100) -> bool:
    """Whether a terminal of that many columns can show the table without breaking a word."""
    return _taken(_least_widths(_terminal_cells(sheet), sheet.left)) <= width


def _terminal_cells(sheet: Sheet) -> list[list[str]]:
    """The heads, then the rows."""
    heads = [column.replace("_", " ") if i >= sheet.left else column for i, column in enumerate(sheet.columns)]
    return [[visible(cell) for cell in row] for row in [heads, *sheet.rows]]


def _taken(widths: Sequence[int]) -> int:
    """The width of a table: one column lies between columns, and one at either edge."""
    return sum(widths) + len(widths) + 1


def _least_widths(cells: Sequence[Sequence[str]], left: int) -> list[int]:
    """The width of each column's longest piece; a cell of numbers is one piece."""
    widths = []
    for i, (head, *column) in enumerate(zip(*cells, strict=True)):
        pieces = [piece for cell in column for piece in _pieces(cell)] if i < left else column
        widths.append(max(map(cell_len, [*_pieces(head), *pieces])))
    return widths


def _widths(cells: Sequence[Sequence[str]], left: int, width: int) -> list[int]:
    """The width of each column; words share what numbers leave."""
    natural = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    widths = _least_widths(cells, left)
    while _taken(widths) > width and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1  # no other way: the longest pieces break
    while _taken(widths) < width:
        # a short label is made whole first, then the one that takes most lines
        lacking = [_need(natural[i], widths[i]) for i in range(left)]
        if not any(lacking):
            break
        widths[lacking.index(max(lacking))] += 1
    return widths


def _need(natural: int, width: int) -> float:
    if natural <= width:
        return 0.0
    return float("inf") if natural - width <= 3 else natural / width


def _pieces(text: str) -> list[str]:
    """The parts of a text between which a line may end."""
    return [piece.rstrip() for piece in _PIECE.findall(text) if piece] or [""]


def _wrapped(text: str, width: int, style: str = "") -> Text:
    lines = [""]
    for piece in _PIECE.findall(text):
        if lines[-1] and cell_len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return Text("\n".join(line.rstrip() for line in lines), style)


def _repeated(sheet: Sheet, row: int) -> int:
    """The number of a row's first words that are those of the row above: they need not be read again."""
    if row == 0 or row - 1 in sheet.rules:
        return 0
    pairs = zip(sheet.rows[row][: sheet.left], sheet.rows[row - 1], strict=False)
    return next((i for i, (word, above) in enumerate(pairs) if word != above), sheet.left)


def markdown(sheet: Sheet) -> str:
    """A GitHub table below its title; its caption and the flags of its numbers follow."""
    as_cell = escaping.markdown
    marks = ["---" if i < sheet.left else "---:" for i in range(len(sheet.columns))]
    rows = [list(map(as_cell, sheet.columns)), marks, *(list(map(as_cell, row)) for row in sheet.rows)]
    flags = [f"- {as_cell(flag)}" for flag in sheet.flags]
    lines = [f"**{as_cell(sheet.title)}**", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    lines.append(as_cell(escaping.unbroken(sheet.caption)))
    return "\n".join([*lines, *([""] if flags else []), *flags]) + "\n"


def latex(sheet: Sheet) -> str:
    """A booktabs table; its title stands in its caption, and the flags of its numbers below that."""
    tex = escaping.latex
    caption = "~".join(map(tex, escaping.parts(f"{sheet.title}. {sheet.caption}")))
    columns = "".join("l" if i < sheet.left else "r" for i in range(len(sheet.columns)))
    head, *rows = [" & ".join(map(tex, row)) + r" \\" for row in [sheet.columns, *sheet.rows]]
    rows = [f"{row}\n\\midrule" if i in sheet.rules - {len(rows) - 1} else row for i, row in enumerate(rows)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{caption}}}",
        *(rf"\par{{\footnotesize {tex(flag)}\par}}" for flag in sheet.flags),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def csv_text(table: pd.DataFrame) -> str:
    """All numbers at full precision; no name in it is a formula."""
    words = {name: table[name].map(_csv_cell) for name in table.columns if not is_numeric_dtype(table[name])}
    safe = table.assign(**words).rename(columns=_csv_cell)
    buffer = io.StringIO()
    safe.to_csv(buffer, index=False, quoting=csv.QUOTE_MINIMAL)
    return buffer.getvalue()


def write_csv(table: pd.DataFrame, file: Path) -> None:
    """Writes a table whose first column is `run` at full precision.

    Raises:
        InputError: the file is there and holds something else, or cannot be written.
    """
    require_own_csv(file)
    with whole(file) as part:
        part.write_text(csv_text(table), encoding="utf-8")


def require_own_csv(file: Path) -> None:
    """Refuses to overwrite what is no table of runs.

    Raises:
        InputError: the file holds something else, such as the table of a data set.
    """
    require_own(file, re.compile(rb"\Arun,(?:model|group|case),"))


def _csv_cell(value: object) -> object:
    return csv_cell(value) if isinstance(value, str) else value
