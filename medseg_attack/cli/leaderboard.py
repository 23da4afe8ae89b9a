"""`medattack leaderboard`: entries of several models, ranked on a page."""

from pathlib import Path
from typing import Annotated

import typer

from medseg_attack.cli import terminal


@terminal.command
def leaderboard(
    folder: Annotated[Path, typer.Argument(help="Folder of entries, DATASET/THREAT/MODEL.json.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the page.", show_default="that of the entries")
    ] = None,
) -> None:
    """Rank models on a page. `medattack report --entry` makes the entries; only verified and complete runs that no
    flag makes doubtful have a rank, the others stand below with the reason.

    Example: medattack leaderboard leaderboard --out site
    """
    from medseg_attack.report.leaderboard.board import boards, summary, write_board
    from medseg_attack.report.leaderboard.entries import read_entries
    from medseg_attack.report.page.templates import require_packages

    require_packages()
    entries = read_entries(folder)
    file = write_board(entries, out or folder)
    terminal.show(*summary(boards(entries)))
    terminal.say(f"page: {file}")
