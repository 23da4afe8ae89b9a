"""`medattack compare`: runs side by side, from their rows alone."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from medseg_attack.cli import terminal
from medseg_attack.cli.attack import EmptyRule, Unit
from medseg_attack.cli.terminal import Json
from medseg_attack.errors import InputError


@terminal.command
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs or of studies.")],
    by: Annotated[str, typer.Option(help="What rows are told apart by: any of model,attack,loss,eps,organ.")] = "model",
    sort: Annotated[
        Literal["by", "clean", "adv", "drop"], typer.Option(help="Rows, by this; by: as --by lists them.")
    ] = "by",
    unit: Unit = "volume",
    empty: EmptyRule = "one",
    csv: Annotated[Path | None, typer.Option("--csv", help="Write all numbers there.", show_default=False)] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print a LaTeX table.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw Dice over eps to this PNG, PDF or SVG.", show_default=False),
    ] = None,
    json: Json = False,
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="Take runs made with --limit.")] = False,
) -> None:
    """Put runs side by side: clean and adversarial Dice per model and organ.

    Example: medattack compare medattack_runs/runs/uw-1a2b3c4d --by organ,model --markdown
    """
    keys = [key.strip() for key in by.split(",")]
    known = ["model", "attack", "loss", "eps", "organ"]
    for value, among, option in [
        *((key, known, "--by") for key in keys),
        (sort, ["by", "clean", "adv", "drop"], "--sort"),
    ]:
        if value not in among:
            raise InputError(f"expected {option} among {', '.join(among)}, got {value!r}; choose from them")
    from medseg_attack import report
    from medseg_attack.files import whole
    from medseg_attack.results import read_runs
    from medseg_attack.stats import summary

    header = ["model", "attack", "loss", "eps", "data", "split", "partial", "n_parameters", "seconds"]
    table = summary(read_runs(runs, allow_partial=allow_partial), unit=unit, empty=empty, header=header)
    if csv is not None:
        with whole(csv) as part:
            part.write_text(report.csv_text(table), encoding="utf-8")
    if plot is not None:
        report.curve(table, plot)
    sheet = report.compare_sheet(table, keys, sort=sort, unit=unit, empty=empty)
    if json:
        terminal.print_json({"unit": unit, "empty": empty, "runs": table.to_dict("records")})
    elif markdown or latex:
        print(report.markdown(sheet) if markdown else report.latex(sheet), end="")
    else:
        terminal.out().print(report.rich_table(sheet))
    for file in filter(None, (csv, plot)):
        terminal.say(f"wrote {file}")
