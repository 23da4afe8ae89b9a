"""`medattack screen`: new scans before a detector, and exit code 1 if there is an alarm."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg_attack.cli import options, terminal
from medseg_attack.cli.progress import progress_bar
from medseg_attack.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@terminal.command
def screen(
    scans: Annotated[
        Path, typer.Argument(help="Folder of NIfTI files, DICOM series or pictures; or a prepared data set.")
    ],
    detector: Annotated[Path, typer.Option("--detector", help="File that medattack detect wrote.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model that the detector was fitted on: its name, folder or spec.")
    ] = "",
    false_alarms: Annotated[
        float, typer.Option("--false-alarms", help="Share of clean scans that may raise a false alarm.")
    ] = 0.05,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", help="Write score and p-value of every scan to this file.", show_default=False),
    ] = None,
    leave_out: options.LeaveOut = None,
    batch_size: options.BatchSize = 32,
    json: options.Json = False,
    device: options.Device = "auto",
    home: options.Home = None,
    trust: options.Trust = False,
    progress: options.ShowProgress = True,
) -> None:
    """Look at new scans before they are used. Each gets a p-value: the share of clean patients who are at least as
    suspicious. Exit code 1 says that there was an alarm.

    Example: medattack screen incoming --detector detectors/entropy.safetensors --model unet_small --false-alarms 0.05
    """
    if not model:
        raise InputError("expected a model, got none; give --model NAME")
    from medseg_attack.models.trust import use_trust
    from medseg_attack.report.sheet import require_own_csv, write_csv
    from medseg_attack.runs import workspace

    if csv is not None:
        require_own_csv(csv)
    folder = workspace.home(home)
    use_trust(folder, trust)
    from medseg_attack.detectors.files import load_detector
    from medseg_attack.evaluation.detection.screening import screen as run
    from medseg_attack.evaluation.opening import find_model
    from medseg_attack.models.model_ref import resolve
    from medseg_attack.runtime import pick_device
    from medseg_attack.stats.alarms import require_rate
    from medseg_attack.types import Task

    saved = load_detector(detector)
    require_rate(false_alarms, len(saved.calibrated.calibration), str(detector))
    task = Task.from_json(saved.facts["task"])
    model_ref = resolve(find_model(folder, model), task)
    trained_for = model_ref.card.get("task")
    own_task = Task.from_json(trained_for) if isinstance(trained_for, dict) else task
    saved.require(detector, model_ref.weights_hash, own_task)
    where = pick_device(device)
    with progress_bar("screen", 1, show=progress):
        table, notes = run(scans, saved, model_ref, where, batch_size=batch_size, leave_out=leave_out or ())
    for note in notes:
        terminal.say(f"note: {note}")
    table["alarm"] = table["p"] <= false_alarms * (1 + 1e-12)
    reason = saved.calibrated.detector.reason
    if json:
        facts = {"detector": saved.facts["detector"], "fingerprint": saved.fingerprint, "false_alarms": false_alarms}
        terminal.print_json({**facts, "reason": reason, "scans": table.to_dict("records")})
    else:
        _print(table, saved.facts["detector"], reason, false_alarms, len(saved.calibrated.calibration))
    if csv is not None:  # what may fail comes last: the scores are nowhere else
        write_csv(table.assign(run=str(scans), case=table["case"])[["run", "case", "scan", "score", "p", "alarm"]], csv)
        terminal.say(f"wrote {csv}")
    if table["alarm"].any():
        raise typer.Exit(terminal.FAILED)


def _print(table: "pd.DataFrame", name: str, reason: str, rate: float, n_calibration: int) -> None:
    from medseg_attack.report.detectors import screen_sheet

    terminal.print_sheet(screen_sheet(table, name=name, reason=reason, rate=rate, n_calibration=n_calibration))
