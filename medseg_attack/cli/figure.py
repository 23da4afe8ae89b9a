"""`medattack figure`: figures and tables for papers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medseg_attack.cli import terminal
from medseg_attack.cli.options import AllowPartial, Device, EmptyRule, Home, Trust, Unit
from medseg_attack.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

    from medseg_attack.report.page.content import Tables

LATEX = ".tex"


@terminal.command
def figure(
    kind: Annotated[
        Literal["curves", "gallery", "heatmap", "profile", "table", "tradeoff", "transfer", "visibility"],
        typer.Argument(help="Kind of figure."),
    ],
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs or of studies.")],
    file: Annotated[
        Path,
        typer.Option("--out", "-o", help="File to write: .pdf, .svg or .png; of a table .tex.", show_default=False),
    ],
    width: Annotated[float, typer.Option("--width", min=30, max=400, help="Width of a figure in mm.")] = 88,
    worst: Annotated[int, typer.Option("--worst", min=1, help="Scans of a gallery, the worst first.")] = 3,
    scan: Annotated[
        str | None,
        typer.Option(
            "--scan",
            help="Scan of a gallery: a row for each attack on it, with the field or movement behind the change.",
            show_default="the worst scans",
        ),
    ] = None,
    unit: Unit = "volume",
    empty: EmptyRule = "one",
    allow_partial: AllowPartial = False,
    device: Device = "auto",
    home: Home = None,
    trust: Trust = False,
) -> None:
    """Draw a figure for a paper, as wide as a column. Or write a table in LaTeX, with the best in bold.

    Example: medattack figure curves medattack_runs/runs/uw-1a2b3c4d --out curves.pdf --width 180

    Example: medattack figure gallery medattack_runs/runs/uw-1a2b3c4d --scan case1_day2 --out gallery.png --width 254

    Example: medattack figure table medattack_runs/runs/uw-1a2b3c4d --out table.tex
    """
    if (kind == "table") != (file.suffix.lower() == LATEX):
        raise InputError(
            f"expected a file {LATEX} for a table, and another for a figure, got {file} for {kind}; change its ending"
        )
    if scan is not None and kind != "gallery":
        raise InputError(f"expected --scan for a gallery alone, got it for {kind}; drop it")
    from medseg_attack.report.figures import require_own_figure, save
    from medseg_attack.report.page.content import tables
    from medseg_attack.report.paper.drawings import DRAWINGS, paper_style
    from medseg_attack.report.paper.latex import require_own_table, write_latex
    from medseg_attack.runs.reading import read_runs
    from medseg_attack.stats.scores import check_unit

    require_own_table(file) if kind == "table" else require_own_figure(file)
    rows = read_runs(runs, allow_partial=allow_partial)
    check_unit(unit, rows["dims"].unique().tolist() if "dims" in rows else ())
    of_runs = tables(rows, unit=unit, empty=empty)
    if kind == "table":
        write_latex(of_runs, file, _flags(of_runs))
    else:
        with paper_style():
            if kind == "gallery":
                from medseg_attack.models.trust import use_trust
                from medseg_attack.runs.workspace import home as workspace_of

                use_trust(workspace_of(home), trust)
                drawn = _gallery(of_runs, worst, scan, device, width)
            else:
                drawn = DRAWINGS[kind](of_runs, width)
            save(drawn, file)
    terminal.say(f"wrote {file}")


def _flags(of_runs: "Tables") -> list[str]:
    """The reasons to doubt the numbers of a table, the gravest first and each once; their evidence may name folders."""
    from medseg_attack.checks.stored import records_of_stored

    runs = map(Path, dict.fromkeys(of_runs.rows["run"]))
    each = {flag["code"]: flag for flag in records_of_stored(runs, of_runs.unit)}
    return [f"{code} {flag['verdict']} - {flag['title']}; {flag['todo']}" for code, flag in each.items()]


def _gallery(of_runs: "Tables", n: int, scan: str | None, device: str, width: float) -> "Figure":
    """The worst scans, or all attacks on one of them, from the images of their runs."""
    from medseg_attack.evaluation.pictures.attacked_scans import attacked_scans
    from medseg_attack.report.page.pictures import worst_scans
    from medseg_attack.report.paper.gallery import attacks_figure, gallery
    from medseg_attack.report.tables.summaries import organs
    from medseg_attack.runtime import pick_device

    where, classes = pick_device(device), organs(of_runs.summary)
    if scan is not None:
        attacks = list(_attacks_on(scan, of_runs))
        rows = [(name, result) for name, run in attacks for result in attacked_scans(run, [scan], where)]
        return attacks_figure(rows, classes, width)
    scans = worst_scans(of_runs.rows, of_runs.summary, n, empty=of_runs.empty)
    if not scans:
        raise InputError("expected a run of an attack to show, got controls and clean images alone; give other runs")
    shown = [(worst, result) for worst in scans for result in attacked_scans(Path(worst.run), [worst.scan], where)]
    return gallery(shown, classes, width)


def _attacks_on(scan: str, of_runs: "Tables") -> "Iterator[tuple[str, Path]]":
    """The name and the run of each attack on a scan.

    Raises:
        InputError: no run attacks that scan.
    """
    from medseg_attack.errors import nearest
    from medseg_attack.report.tables.summaries import budget

    table = of_runs.summary[of_runs.summary["role"] == "attack"]
    rows = of_runs.rows[of_runs.rows["run"].isin(table["run"])]
    with_scan = set(rows.loc[rows["volume"] == scan, "run"])
    if not with_scan:
        names = sorted(map(str, rows["volume"].unique()))
        raise InputError(f"--scan: expected a scan of a run of an attack, got {scan!r}; {nearest(scan, names)}")
    several = table["model"].nunique() > 1
    for _, run in table[table["run"].isin(with_scan)].iterrows():
        words = [f"{run['model']}:" if several else "", str(run["attack"]), str(run["loss"]), budget(run)]
        yield " ".join(filter(None, words)), Path(str(run["run"]))
