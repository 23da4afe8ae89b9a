"""`medattack rm`: removes data sets, models and runs from the workspace, after it showed them."""

import sys
from typing import Annotated

import typer

from medseg_attack.cli import consoles, terminal
from medseg_attack.cli.options import Home
from medseg_attack.errors import InputError, plural


@terminal.command
def rm(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Names that medattack ls runs, ls data or ls trained shows; data/NAME if several are alike."
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without a question.")] = False,
    home: Home = None,
) -> None:
    """Remove data sets, models, runs or baselines. It shows what goes from the workspace, and asks.

    Example: medattack rm uw-1a2b3c4d

    Nothing outside of the workspace is touched, and no scans that data sets were prepared from.
    """
    from medseg_attack.cli.stored import stored_table
    from medseg_attack.runs.workspace import find_item, remove, users
    from medseg_attack.runs.workspace import home as workspace_of

    workspace = workspace_of(home)
    chosen = list({item.path: item for item in (find_item(workspace, name) for name in names)}.values())
    consoles.err().print(stored_table(chosen))
    for item in chosen:
        others = [f"{each.kind}/{each.name}" for each in users(workspace, item) if each not in chosen]
        if others:
            terminal.say(f"note: {item.kind}/{item.name} is what {', '.join(others)} came from, and verify reads again")
    if not yes:
        if not sys.stdin.isatty():
            raise InputError("expected --yes where nobody can be asked, got none; add --yes to remove them")
        typer.confirm(f"Remove {plural(len(chosen), 'folder')} from {workspace}?", abort=True, err=True)
    for item in chosen:
        remove(item)
        terminal.say(f"removed {item.path}")
