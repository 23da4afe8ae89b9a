"""`medattack selftest`: is this installation right?"""

from typing import Annotated, Any

import typer

from medseg_attack.cli import terminal
from medseg_attack.cli.terminal import FAILED, Json


@terminal.command
def selftest(
    against: Annotated[
        str, typer.Option(help="Compare with other libraries, too: torchattacks, adv_lib, foolbox.", show_default=False)
    ] = "",
    json: Json = False,
) -> None:
    """Check attacks, balls and objectives against closed forms and stored values; exit code 1 if one is off.

    Example: medattack selftest --against torchattacks,adv_lib,foolbox
    """
    from dataclasses import asdict

    from medseg_attack.checks import installation, other_libraries

    names = [name.strip() for name in against.split(",") if name.strip()]
    outcomes = list(installation.run([*installation.CHECKS, *other_libraries.comparisons(names)]))
    if json:
        terminal.print_json({"checks": [asdict(one) for one in outcomes]})
    else:
        terminal.out().print(_table(outcomes))
    if any(one.problem for one in outcomes):
        raise typer.Exit(FAILED)


def _table(outcomes: Any) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("check", "ok", "what was compared", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for one in outcomes:
        told = f"{one.compared}; WRONG: {one.problem}" if one.problem else one.compared
        table.add_row(one.name, "NO" if one.problem else "yes", escape(told))
    return table
