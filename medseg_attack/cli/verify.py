"""`medattack verify`: the perturbed scans of a run, read again from their files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg_attack.cli import terminal
from medseg_attack.cli.options import Device, Home, Json, ShowProgress, Trust
from medseg_attack.cli.progress import progress_bar

if TYPE_CHECKING:
    from medseg_attack.exports.verification import Mismatch


@terminal.command
def verify(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs or of studies.")],
    json: Json = False,
    device: Device = "auto",
    home: Home = None,
    trust: Trust = False,
    progress: ShowProgress = True,
) -> None:
    """Read stored scans again and check them. Hash, geometry, budget and Dice, to the last pixel; exit code 1 on any
    mismatch.

    Example: medattack verify medattack_runs/runs/uw-1a2b3c4d
    """
    from medseg_attack.models.trust import use_trust
    from medseg_attack.runs.reading import find_runs
    from medseg_attack.runs.workspace import home as workspace_of

    use_trust(workspace_of(home), trust)
    folders = list(dict.fromkeys(find_runs(runs)))
    mismatches: dict[Path, list[Mismatch]] = {}
    with progress_bar("verify", len(folders), show=progress) as advance:
        for folder in folders:
            mismatches[folder] = _mismatches(folder, device)
            advance()
    if json:
        content = [
            {
                "run": str(run),
                "verified": not of_run,
                "mismatches": [{"case": mismatch.what, "what": mismatch.problem} for mismatch in of_run],
            }
            for run, of_run in mismatches.items()
        ]
        terminal.print_json(content)
    else:
        for run, of_run in mismatches.items():
            terminal.show(f"{'FAIL' if of_run else 'ok  '} {run}")
            for mismatch in of_run:
                terminal.show(f"     {mismatch.what}: {mismatch.problem}")
    if any(mismatches.values()):
        raise typer.Exit(terminal.FAILED)


def _mismatches(run: Path, device: str) -> "list[Mismatch]":
    from medseg_attack.evaluation.opening import open_run
    from medseg_attack.exports import verification
    from medseg_attack.models.segmodel import frozen
    from medseg_attack.runtime import deterministic, pick_device

    where = pick_device(device)
    data, model, _ = open_run(run, where)
    with frozen(model), deterministic(where):
        return list(verification.verify(run, data, model, where))
