"""`medattack watch`: how far a study is, and who is at work on it."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg_attack.cli import consoles, terminal
from medseg_attack.cli.options import Json
from medseg_attack.cli.progress import MINUTE
from medseg_attack.errors import InputError

if TYPE_CHECKING:
    from rich.console import Group

    from medseg_attack.report.progress.state import StudyState

REFRESH = 2.0  # seconds


@terminal.command
def watch(
    run: Annotated[Path, typer.Argument(help="Folder of a study, of one of its runs, or of several.")],
    once: Annotated[
        bool, typer.Option("--once", help="Print the state once and end, rather than when all is done.")
    ] = False,
    json: Json = False,
) -> None:
    """Watch a study while it runs, here or on other machines. It shows the cases that are done, the rate, the time
    left, the Dice so far, and which workers are alive and when they last wrote. Only the folder is read.

    Example: medattack watch medattack_runs/runs/acdc-1a2b3c4d
    """
    from medseg_attack.report.progress.state import read_state
    from medseg_attack.report.progress.view import headline, record

    if not run.is_dir():
        from medseg_attack.storage.kinds import instead

        got = instead(run, "none", "give the --out of a study")
        raise InputError(f"expected a folder of runs at {run}, {got}")
    state = read_state(run)
    console = consoles.out()
    if not once and not state.is_finished and not json and console.is_terminal and os.environ.get("TERM") != "dumb":
        from rich.live import Live

        with Live(_view(state), console=console, auto_refresh=False, transient=True) as live:
            while not state.is_finished:
                time.sleep(REFRESH)
                state = read_state(run)
                live.update(_view(state), refresh=True)
    elif not once:
        line = ""
        while not state.is_finished:
            if (text := headline(state)) != line:
                terminal.say(text)
            line = text
            time.sleep(REFRESH if json else MINUTE)
            state = read_state(run)
    if json:
        terminal.print_json(record(state))
    else:
        console.print(_view(state))


def _view(state: "StudyState") -> "Group":
    from rich.console import Group
    from rich.text import Text

    from medseg_attack.escaping import visible
    from medseg_attack.report.progress.view import headline, run_sheet, worker_sheet
    from medseg_attack.report.sheet import rich_table

    width = consoles.out().width
    sheets = [sheet for sheet in (worker_sheet(state), run_sheet(state)) if sheet.rows]
    return Group(Text(visible(headline(state))), Text(""), *(rich_table(sheet, width) for sheet in sheets))
