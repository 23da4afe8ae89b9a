"""`medattack cite`: BibTeX of what runs used."""

from pathlib import Path
from typing import Annotated

import typer

from medseg_attack.cli import terminal


@terminal.command
def cite(runs: Annotated[list[Path], typer.Argument(help="Folders of runs or of studies.")]) -> None:
    """Print BibTeX for what runs used: data sets, attacks, models.

    Example: medattack cite medattack_runs/runs/acdc-1a2b3c4d > references.bib
    """
    from medseg_attack.errors import listed
    from medseg_attack.report.citing import bibliography

    text, uncited = bibliography(runs)
    terminal.show(*text.split("\n"))
    if uncited:
        terminal.say(f"note: nothing is known to cite for {listed(uncited, 20)}; name its authors yourself")
