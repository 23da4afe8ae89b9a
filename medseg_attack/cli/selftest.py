"""`medattack selftest`: is this installation right?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from medseg_attack.cli import consoles, terminal
from medseg_attack.cli.options import Json
from medseg_attack.cli.terminal import FAILED

if TYPE_CHECKING:
    from rich.table import Table

    from medseg_attack.checks.installation import Outcome


@terminal.command
def selftest(
    against: Annotated[
        str,
        typer.Option(help="Libraries to compare with, too: any of torchattacks,adv_lib,foolbox.", show_default="none"),
    ] = "",
    json: Json = False,
) -> None:
    """Check this installation against closed forms. Exit code 1 if an attack, ball or objective is off.

    Example: medattack selftest --against torchattacks,adv_lib,foolbox
    """
    from dataclasses import asdict

    from medseg_attack.checks import installation, other_libraries

    names = [name.strip() for name in against.split(",") if name.strip()]
    outcomes = list(installation.run([*installation.CHECKS, *other_libraries.comparisons(names)]))
    if json:
        terminal.print_json({"checks": [asdict(outcome) for outcome in outcomes]})
    else:
        consoles.out().print(_table(outcomes))
    if any(outcome.problem for outcome in outcomes):
        raise typer.Exit(FAILED)


def _table(outcomes: "Sequence[Outcome]") -> "Table":
    from rich import box
    from rich.table import Table

    table = Table("check", "ok", "what was compared", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"  # names are shown whole
    for outcome in outcomes:
        text = f"{outcome.compared}; WRONG: {outcome.problem}" if outcome.problem else outcome.compared
        table.add_row(outcome.name, "NO" if outcome.problem else "yes", text)
    return table
