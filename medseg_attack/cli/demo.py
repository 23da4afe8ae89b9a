"""`medattack demo`: from nothing to the table and its page on the built-in data set."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from medseg_attack.cli import consoles, terminal
from medseg_attack.cli.options import Home
from medseg_attack.errors import InputError, duration

BUDGETS = ("1/255", "2/255", "4/255", "8/255")


def steps(workspace: Path) -> list[list[str]]:
    """The commands of the demonstration, as a newcomer would type them."""
    data, model, runs = workspace / "data" / "phantom", workspace / "models" / "demo", workspace / "runs" / "demo"
    attacks, losses = ("fgsm", "pgd(steps=10, objective=bce)"), ("bce", "dice_focal", "focal")
    curve, table = workspace / "eps-curve.png", workspace / "table.csv"
    page = ["report", str(runs), *_options(out=workspace / "report")]
    return [
        ["prepare", str(workspace / "phantom"), *_options(format="phantom", out=data)],
        ["train", *_options(data=data, model="unet_small", lr="3e-3", epochs=30, out=model)],
        ["attack", *_options(data=data, model=model, attack=attacks, loss=losses, eps=BUDGETS, out=runs)],
        ["compare", str(runs), *_options(plot=curve, csv=table, by="attack,loss,eps")],
        *([page] if _has_pages() else []),
    ]


def _has_pages() -> bool:
    """Whether the packages that pages need are installed."""
    from medseg_attack.report.page.templates import require_packages

    try:
        require_packages()
    except InputError:
        return False
    return True


def _options(**values: object) -> list[str]:
    """Options as they are typed; one with several values stands several times."""
    several = {name: value if isinstance(value, tuple) else (value,) for name, value in values.items()}
    return [word for name, each in several.items() for value in each for word in (f"--{name}", str(value))]


@terminal.command
def demo(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of everything that is made.", show_default="<home>/demo")
    ] = None,
    home: Home = None,
) -> None:
    """See it work on phantom scans. Makes the scans, trains a small U-Net on them, attacks it, prints the table,
    draws the curve and writes a page.

    Takes minutes on two CPU cores. Started again, it goes on where it stopped.
    """
    from medseg_attack.runs.workspace import home as workspace_of

    workspace = out or workspace_of(home) / "demo"
    commands = steps(workspace)
    start = time.monotonic()
    for i, words in enumerate(commands, 1):
        consoles.err().rule(f"{i} of {len(commands)}: medattack {words[0]}", align="left")
        # each step is the command that is shown: what works here works when it is typed
        # compare would print the table of attack again: only its files are of use
        quiet = subprocess.DEVNULL if words[0] == "compare" else None
        code = subprocess.run([sys.executable, "-m", "medseg_attack", *words], check=False, stdout=quiet).returncode
        if code == terminal.INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise InputError(f"expected 'medattack {words[0]}' to finish, got exit code {code}; see its message above")
    terminal.say("")
    terminal.say("What was run, to go on from:", *(f"  {terminal.shell(words)}" for words in commands))
    terminal.say(f"Done in {duration(time.monotonic() - start)}. The curve over budgets: {workspace / 'eps-curve.png'}")
    page = workspace / "report" / "index.html"
    where = page if page.exists() else "pip install 'medseg-attack[report]', then run medattack report"
    terminal.say(f"A page to look at: {where}")
    data = str(workspace.parent / "data" / "mine")
    terminal.next_step(["prepare", "YOUR_SCANS", "--format", "decathlon", "--out", data])
