r"""A table for a paper: booktabs, columns of siunitx, the best in bold, intervals as subscripts.

The preamble needs `\usepackage{booktabs,siunitx}`. Numbers are those of `stats.scores.summary`.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from medseg_attack.escaping import latex as tex
from medseg_attack.report.page.content import Tables
from medseg_attack.report.sheet import number
from medseg_attack.report.tables.captions import caption
from medseg_attack.report.tables.comparison import LESS, with_columns_that_may_differ
from medseg_attack.report.tables.summaries import budget, organs
from medseg_attack.stats.scores import MEAN
from medseg_attack.storage.files import require_own, whole


def latex_table(of: Tables, flags: Sequence[str]) -> str:
    """The table of all runs as LaTeX: clean images, then a row per run, with the reasons to doubt its numbers below.

    The best is the highest Dice of several models under the same attack and budget; of one model it is the attack that
    leaves least at the same budget. Data set, split and norm are columns where the runs differ in them.
    """
    summary = with_columns_that_may_differ(of.summary, of.unit)
    differing = [key for key in LESS if summary[key].nunique() > 1]
    clean = _clean_rows(summary)
    table = pd.concat([clean, summary[summary["role"] != "clean"]], ignore_index=True)
    names = ["model", *differing, "attack", "loss"]
    columns = [MEAN, *organs(table)]
    best = {organ: set(_best(table, organ)) for organ in columns}
    formats = "".join(r" S[table-format=1.3]@{\,}l" for _ in columns)
    heads = " & ".join(rf"\multicolumn{{2}}{{c}}{{{tex(organ)}}}" for organ in columns)
    rows = []
    for n, run in table.iterrows():
        words = [tex(str(run[name])) for name in names]
        cells = [_cell(run, organ, is_best=n in best[organ]) for organ in columns]
        rows.append(" & ".join([*words, tex(budget(run)), *cells]) + r" \\")
    rows.insert(len(clean), r"\midrule")
    several = table["model"].nunique() > 1
    bold = "the highest under the same attack" if several else "the attack that leaves least at its budget"
    meaning = rf"Dice on clean images and under attack, with 95\,\% intervals over patients. Bold: {bold}. "
    meaning += tex(caption(of.summary, unit=of.unit, empty=of.empty, dice_only=True))
    lines = [
        "% needs \\usepackage{booktabs,siunitx}",
        r"\begin{table}",
        r"\centering",
        r"\sisetup{detect-weight=true, mode=text}",
        rf"\begin{{tabular}}{{{'l' * len(names)}l{formats}}}",
        r"\toprule",
        rf"{' & '.join(names)} & $\varepsilon$ & {heads} \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{meaning}}}",
        *(rf"\par{{\footnotesize {tex(flag)}\par}}" for flag in flags),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _clean_rows(summary: pd.DataFrame) -> pd.DataFrame:
    """A row for the clean images of each model, or several where its runs scored different cases."""
    scores = ["mean", *organs(summary)]
    clean = summary.drop_duplicates(["model", "data", "split", *(f"{score}_clean" for score in scores)])
    of_clean = {f"{score}_adv": clean[f"{score}_clean"] for score in scores}
    of_mean = {"low": clean["low_of_clean"], "high": clean["high_of_clean"]}
    unknown = {f"{organ}_{end}": float("nan") for organ in organs(summary) for end in ("low", "high")}
    nothing = {"role": "clean", "attack": "clean", "loss": "", "norm": "", "eps": None, "ball": None}
    return clean.assign(**of_clean, **of_mean, **unknown, **nothing)


def _best(table: pd.DataFrame, organ: str) -> Iterator[int]:
    """The places of the best rows for an organ, controls left out; several if they are equal."""
    several = table["model"].nunique() > 1
    attacks = table[table["role"].isin(["attack", "clean"] if several else ["attack"])]
    keys = ["data", "split", "eps", "ball", *(["attack", "loss"] if several else [])]
    for _, group in attacks.groupby(keys, dropna=False, sort=False):
        values = group[f"{organ}_adv"]
        if len(group) > 1:
            best = values.max() if several else values.min()
            yield from (int(place) for place in group.index[values == best])


def _cell(run: "pd.Series[float]", organ: str, *, is_best: bool) -> str:
    """The number and, in the next column, its interval."""
    value = run[f"{organ}_adv"]
    low, high = (run[end if organ == MEAN else f"{organ}_{end}"] for end in ("low", "high"))
    subscript = "" if low != low else f"$_{{{number(low, 2)}\\text{{--}}{number(high, 2)}}}$"
    shown = "{--}" if value != value else number(value)
    bold = "\\bfseries " if is_best else ""
    return f"{bold}{shown} & {subscript}"


def write_latex(of: Tables, file: Path, flags: Sequence[str]) -> None:
    """Writes the table of all runs, with the flags below it.

    Raises:
        InputError: the file is there and holds something else, or cannot be written.
    """
    require_own_table(file)
    with whole(file) as part:
        part.write_text(latex_table(of, flags), encoding="utf-8")


def require_own_table(file: Path) -> None:
    """Refuses to overwrite what is no table of this package.

    Raises:
        InputError: the file holds something else, such as a paper.
    """
    require_own(file, re.compile(rb"\A% needs "))
