"""What people look at: tables for the terminal, Markdown, LaTeX and CSV, and the curve over budgets. No torch."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd
from rich import box
from rich.table import Table

from medseg_attack.errors import InputError, plural
from medseg_attack.files import whole
from medseg_attack.patients import HOLDS_FROM, warning
from medseg_attack.registry import spec
from medseg_attack.stats import EMPTY_RULES, Empty, Unit

MOST_ORGANS = 4  # columns that fit 100 characters beside the rest
HEADER = ["model", "attack", "loss", "eps"]
LESS = ["norm", "data", "split"]  # what is seldom told apart


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


def organs(summary: pd.DataFrame) -> list[str]:
    """The classes of a summary, in the order of the task."""
    return [c.removesuffix("_adv") for c in summary.columns if c.endswith("_adv") and c != "mean_adv"]


def attack_sheet(summary: pd.DataFrame, *, unit: Unit, empty: Empty) -> Sheet:
    """One model's table: clean on top, then noise, then attacks, adversarial Dice per organ."""
    first = summary.iloc[0]
    shown = _worst(summary)
    rows = [_clean(first, shown), *(_attacked(row, shown) for _, row in _ordered(summary).iterrows())]
    n_noise = int(summary["attack"].str.startswith("noise").sum())
    return Sheet(
        f"{first['model']} on {first['data']}",
        ["attack", "loss", "eps", *shown, "mean", "95 % CI", "drop", "rel. drop", "< half", "missed"],
        rows,
        caption(summary, unit=unit, empty=empty, hidden=len(organs(summary)) - len(shown)),
        left=2,
        rules=frozenset({0, n_noise}),
    )


def _worst(summary: pd.DataFrame) -> list[str]:
    drops = {o: (summary[f"{o}_clean"] - summary[f"{o}_adv"]).max() for o in organs(summary)}
    kept = sorted(drops, key=lambda organ: -drops[organ])[:MOST_ORGANS]
    return [organ for organ in drops if organ in kept]


def _ordered(summary: pd.DataFrame) -> pd.DataFrame:
    rank = summary["attack"].map(lambda name: 0 if name.startswith("noise") else 1)
    first = {name: i for i, name in enumerate(dict.fromkeys(summary["attack"] + "/" + summary["loss"]))}
    order = (summary["attack"] + "/" + summary["loss"]).map(first)
    return summary.assign(_rank=rank, _order=order).sort_values(["_rank", "_order", "eps"], kind="stable")


def _clean(row: "pd.Series[float]", shown: Sequence[str]) -> list[str]:
    values = [number(row[f"{organ}_clean"]) for organ in [*shown, "mean"]]
    return ["clean", "", "", *values, *[""] * 5]


def _attacked(row: "pd.Series[float]", shown: Sequence[str]) -> list[str]:
    return [
        str(row["attack"]),
        str(row["loss"]),
        spec(float(row["eps"])),
        *(number(row[f"{organ}_adv"]) for organ in [*shown, "mean"]),
        between(row["low"], row["high"]),
        number(row["drop"]),
        percent(row["relative_drop"]),
        percent(row["below_half"]),
        percent(row["missed"]),
    ]


def caption(summary: pd.DataFrame, *, unit: Unit, empty: Empty, hidden: int = 0) -> str:
    """What the numbers of a table are, in sentences."""
    first = summary.iloc[0]
    parts = [
        f"Dice per {unit}, {plural(first['cases'], unit)} of {plural(first['patients'], 'patient')} "
        f"({first['split']} split); interval: of the mean under attack, bootstrap-t over patients.",
        f"Empty masks: {EMPTY_RULES[empty]}; decided {int(summary['touched'].max())} of {first['entries']} scores.",
        "rel. drop: of the mean; < half: share of scores below half their clean Dice; missed: share of organs found "
        "on the clean image and lost under attack.",
    ]
    if first["patients"] < HOLDS_FROM:
        parts.append(warning(int(first["patients"])))
    if summary["verified"].any():
        parts.append(f"Verified from disk: {int(summary['verified'].sum())} of {len(summary)} runs.")
    if summary["partial"].any():
        parts.append("PARTIAL: --limit left cases out.")
    if hidden:
        parts.append(f"{hidden} organs with smaller drops are not shown; --csv and --json have all.")
    return " ".join(parts)


def compare_sheet(summary: pd.DataFrame, by: Sequence[str], *, sort: str, unit: Unit, empty: Empty) -> Sheet:
    """Runs side by side; with "organ" among `by`, one row per organ instead of one column."""
    summary = _told_apart(summary)
    keys = [*by, *(key for key in [*HEADER, *LESS] if key not in by and summary[key].nunique() > 1)]
    table = long(summary) if "organ" in keys else summary.assign(clean=summary["mean_clean"], adv=summary["mean_adv"])
    if sort == "by":
        table = table.sort_values(keys, kind="stable", key=_rank)
    else:
        table = table.sort_values(sort, kind="stable")
    shown = [] if "organ" in keys else _worst(summary)
    scores = ["clean", *(f"{organ}_adv" for organ in shown), "adv"]
    rows = [
        [*(_key(row, key) for key in keys), *(number(row[score]) for score in scores),
         between(row["low"], row["high"]) if "organ" not in keys else "",
         number(row["drop"]), percent(row["relative_drop"]), percent(row["below_half"]), percent(row["missed"])]
        for _, row in table.iterrows()
    ]  # fmt: skip
    columns = [*keys, "clean", *shown, "mean", "95 % CI", "drop", "rel. drop", "< half", "missed"]
    drop = {columns.index("95 % CI")} if "organ" in keys else set()
    if "organ" in keys:  # success is stated over organs
        drop |= {columns.index(name) for name in ("rel. drop", "< half", "missed")}
        columns[columns.index("mean")] = "adv"
    kept = [i for i in range(len(columns)) if i not in drop]
    hidden = len(organs(summary)) - len(shown) if shown else 0
    return Sheet(
        _title(summary, keys),
        [columns[i] for i in kept],
        [[row[i] for i in kept] for row in rows],
        caption(summary, unit=unit, empty=empty, hidden=hidden),
        left=len(keys),
    )


def _told_apart(summary: pd.DataFrame) -> pd.DataFrame:
    """With the norm as a column, and checkpoints of one label by the folder that says their weights."""
    folder = summary["run"].map(lambda run: Path(run).parent.name)
    norm = summary["ball"].str.partition("(")[0] if "ball" in summary else "linf"
    several = folder.groupby(summary["model"]).transform("nunique") > 1
    return summary.assign(norm=norm, model=summary["model"].where(~several, folder))


def _title(summary: pd.DataFrame, keys: Sequence[str]) -> str:
    """What all runs of a table have in common."""
    same = [key for key in [*HEADER, *LESS] if key not in keys and summary[key].nunique() == 1]
    said = [f"{key} {_key(summary.iloc[0], key)}" for key in same if str(summary.iloc[0][key])]
    return "Runs side by side" + (": " + ", ".join(said) if said else "")


def _rank(column: "pd.Series[str]") -> "pd.Series[float]":
    """Budgets by size, words in the order in which the runs bring them, which puts the control first."""
    if column.name == "eps":
        return column.astype(float)
    first = {word: float(i) for i, word in enumerate(dict.fromkeys(column))}
    return column.map(first)


def long(summary: pd.DataFrame) -> pd.DataFrame:
    """One row per run and organ, with `clean`, `adv` and `drop`."""
    parts = [
        summary.assign(organ=o, clean=summary[f"{o}_clean"], adv=summary[f"{o}_adv"]).assign(
            drop=lambda t: t["clean"] - t["adv"]
        )
        for o in organs(summary)
    ]
    return pd.concat(parts, ignore_index=True)


def _key(row: "pd.Series[float]", key: str) -> str:
    return spec(float(row[key])) if key == "eps" else str(row[key])


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
    """For the terminal, at most 100 columns wide; underscores give way to spaces so that heads can wrap."""
    table = Table(
        title=sheet.title, caption=sheet.caption, box=box.SIMPLE_HEAD, padding=0, title_justify="left",
        caption_justify="left", title_style="bold", pad_edge=False,
    )  # fmt: skip
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
    """How many of a row's first words are those of the row above: they need not be read again."""
    if row == 0 or row - 1 in sheet.rules:
        return 0
    pairs = zip(sheet.rows[row][: sheet.left], sheet.rows[row - 1], strict=False)
    return next((i for i, (here, above) in enumerate(pairs) if here != above), sheet.left)


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
    return "\n".join(
        [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule",
         *lines[1:], r"\bottomrule", r"\end{tabular}", rf"\caption{{{_tex(sheet.caption)}}}", r"\end{table}"]
    ) + "\n"  # fmt: skip


def _tex(text: str) -> str:
    for plain, escaped in (
        ("\\", r"\textbackslash "),
        ("_", r"\_"),
        ("%", r"\%"),
        ("&", r"\&"),
        ("<", "$<$"),
    ):
        text = text.replace(plain, escaped)
    return text


def csv_text(table: pd.DataFrame) -> str:
    """All numbers at full precision."""
    buffer = io.StringIO()
    table.to_csv(buffer, index=False, quoting=csv.QUOTE_MINIMAL)
    return buffer.getvalue()


def curve(summary: pd.DataFrame, file: Path) -> None:
    """Mean Dice over the budget, a line per model, attack and loss with its interval; the noise control is dashed."""
    import matplotlib as mpl

    formats = ("png", "pdf", "svg")
    if file.suffix.lower().lstrip(".") not in ("", *formats):
        raise InputError(f"expected a file .{', .'.join(formats)} to draw, got {file}; change its ending")
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    several = summary["model"].nunique() > 1
    for key, line in summary.groupby(["model", "attack", "loss"], sort=False):
        model, attack, loss = map(str, key)
        line = line.sort_values("eps")
        control = attack.startswith("noise")
        start = pd.DataFrame({"eps": [0.0], "mean_adv": line["mean_clean"].head(1).to_numpy()})
        points = pd.concat([start, line[["eps", "mean_adv"]]])
        name = " ".join(filter(None, [model if several else "", attack, loss]))
        (drawn,) = axes.plot(
            points["eps"] * 255, points["mean_adv"], "--" if control else "-", marker="o", ms=3, label=name,
            color="0.4" if control and not several else None,
        )  # fmt: skip
        axes.fill_between(line["eps"] * 255, line["low"], line["high"], alpha=0.12, color=drawn.get_color(), lw=0)
    axes.set(xlabel="eps in 1/255 of the intensity window", ylabel="mean Dice", ylim=(0, 1))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with whole(file) as part:
        figure.savefig(part, format=file.suffix.lower().lstrip(".") or "png", dpi=150)
    plt.close(figure)


def score_sheet(table: pd.DataFrame, *, unit: Unit, empty: Empty) -> Sheet:
    """Scores of clean or stored images: a row per run and organ."""
    fixed = ["run", "cls", "cases", "touched", "model", "attack", "eps", "data", "split", "partial"]
    measures = [column for column in table.columns if column not in fixed]
    several = table["run"].nunique() > 1
    rows = [
        [
            *([Path(str(row["run"])).name] if several else []),
            str(row["cls"]),
            *(number(row[m]) for m in measures),
        ]
        for _, row in table.iterrows()
    ]
    mean = table[measures].mean()
    if not several:
        rows.append(["mean", *(number(mean[m]) for m in measures)])
    first = table.iloc[0]
    text = (
        f"Dice and IoU per {unit}, {plural(first['cases'], unit)} ({first['split']} split). "
        f"Empty masks: {EMPTY_RULES[empty]}; decided {int(table['touched'].sum())} scores. Other measures per scan, in "
        "3-D; an organ in neither mask is left out, one in one mask alone counts as the grid's diagonal (mm) or 0."
    )
    partial = " PARTIAL: --limit left cases out." if table["partial"].any() else ""
    title = f"{first['model']} on {first['data']}: {'stored images' if first['eps'] > 0 else 'clean images'}"
    columns = [*(["run"] if several else []), "organ", *measures]
    return Sheet(title, columns, rows, text + partial, left=2 if several else 1)
