"""`medattack report`: runs as a page that people look at, one file that asks no network for anything."""

from pathlib import Path
from typing import Annotated

import typer

from medseg_attack.cli import terminal
from medseg_attack.cli.options import EmptyRule, Unit


@terminal.command
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs or of studies.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the page.")] = Path("report"),
    unit: Unit = "volume",
    empty: EmptyRule = "one",
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Accept runs of part of the cases (--limit).")
    ] = False,
) -> None:
    """Write a page about runs. One HTML file with a table to sort, curves, every patient, the worst cases and the
    flags.

    Example: medattack report medattack_runs/runs/uw-1a2b3c4d --out report
    """
    from medseg_attack.report.page.rendering import NAME, Report, require_own_page, require_packages, write_page

    require_packages()
    require_own_page(out / NAME)
    from medseg_attack.checks.flags_page import explanations
    from medseg_attack.checks.stored import records_of_stored
    from medseg_attack.report.page.content import tables
    from medseg_attack.report.page.method import studies
    from medseg_attack.runs.reading import read_runs
    from medseg_attack.stats.scores import check_unit

    rows = read_runs(runs, allow_partial=allow_partial)
    check_unit(unit, rows["dims"].unique().tolist() if "dims" in rows else ())
    folders = [Path(run) for run in rows["run"].unique()]
    page = Report(
        tables(rows, unit=unit, empty=empty),
        flags=records_of_stored(folders),
        studies=list(studies(folders)),
        explanations={code: flag.explanation for code, flag in explanations().items()},
    )
    file = write_page(page, out)
    terminal.say(f"page: {file}")
