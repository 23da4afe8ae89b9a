"""`medattack evaluate`: scores of clean or of stored images, per organ and case."""

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg_attack.cli import terminal
from medseg_attack.cli.options import (
    BatchSize,
    Data,
    Device,
    EmptyRule,
    Home,
    Json,
    Limit,
    ShowProgress,
    Split,
    Trust,
    Unit,
    repeated,
)
from medseg_attack.errors import InputError

if TYPE_CHECKING:
    from medseg_attack.evaluation.runner import OpenedStudy

METRICS = ["hd95_mm", "assd_mm", "nsd"]


@terminal.command
def evaluate(
    data: Data = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="Model to score: the name of a trained one, its folder, or a spec such as \"own('net.py:build')\".",
        ),
    ] = "",
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="Run or study whose stored images are scored, with the cases that it chose.",
            show_default="clean images",
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        repeated("--metric", help="Measure beside Dice and IoU.", default="hd95_mm, assd_mm, nsd(tolerance_mm=2)"),
    ] = None,
    split: Split = "test",
    fold: Annotated[int, typer.Option(help="Cross-validation fold of the val and train splits.")] = 0,
    limit: Limit = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", help="Write the scores of every case and organ to this file.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the results.", show_default="<home>/runs/<data>-<hash>"),
    ] = None,
    batch_size: BatchSize = 16,
    unit: Unit = "volume",
    empty: EmptyRule = "one",
    json: Json = False,
    device: Device = "auto",
    home: Home = None,
    trust: Trust = False,
    progress: ShowProgress = True,
) -> None:
    """Score a trained model on clean or on stored images. Images that were perturbed for another model show what
    transfers to this one.

    Example: medattack evaluate --model unet --images medattack_runs/runs/uw-1a2b3c4d
    """
    if not model:
        raise InputError("expected a model, got none; give --model NAME")
    fields = {
        "data": str(data) if data else None,
        "models": [model],
        "attacks": ["clean"],
        "control": False,
        "split": split,
        "fold": fold,
        "limit": limit,
        "metrics": metrics or METRICS,
    }
    from medseg_attack.models.trust import use_trust
    from medseg_attack.report.sheet import require_own_csv
    from medseg_attack.runs.workspace import home as workspace_of

    if csv is not None:
        require_own_csv(csv)

    use_trust(workspace_of(home), trust)
    opened = _opened(fields, images, home, out, device, batch_size)
    from medseg_attack.evaluation.runner import run
    from medseg_attack.stats.scores import check_unit

    check_unit(unit, [model_ref.dims for model_ref in opened.models])
    with terminal.progress("evaluate", opened.total, show=progress) as advance:
        for n_done, _ in run(opened):
            advance(n_done)
    _print(opened.run_folders, unit, empty, csv, json)
    terminal.say(f"results: {opened.out}")
    words = ["--data", str(data)] if data else []
    attack = ["--attack", "square"] if opened.models[0].black_box else ["--loss", "bce"]
    terminal.next_step(terminal.shell(["attack", *words, "--model", model, *attack, "--eps", "4/255"]))


def _opened(
    fields: dict[str, Any], images: Path | None, home: Path | None, out: Path | None, device: str, batch_size: int
) -> "OpenedStudy":
    """The study of clean images, or that of the images which a run stored."""
    from medseg_attack.runs.replays import replay_fields
    from medseg_attack.runs.study import read_study
    from medseg_attack.runs.workspace import home as workspace_of
    from medseg_attack.runs.workspace import with_newest_data

    workspace = workspace_of(home)
    study = read_study(None, fields | (replay_fields(images) if images else {}))
    study = with_newest_data(workspace, study)  # reported before torch is loaded
    from medseg_attack.evaluation.opening import open_study
    from medseg_attack.evaluation.runner import RunOptions
    from medseg_attack.runtime import pick_device

    opened = open_study(study, workspace, pick_device(device), RunOptions(batch_size, checks=True), out)
    terminal.say(opened.summary)
    for note in opened.notes:
        terminal.say(f"note: {note}")
    return opened


def _print(folders: list[Path], unit: Unit, empty: EmptyRule, csv: Path | None, json: bool) -> None:
    from medseg_attack.checks.stored import flags_of, with_ids
    from medseg_attack.report.sheet import write_csv
    from medseg_attack.report.tables import score_sheet
    from medseg_attack.runs.reading import read_runs
    from medseg_attack.stats.scores import scores

    rows = read_runs(folders, allow_partial=True)
    table, cases = scores(rows, unit=unit, empty=empty)
    flags = flags_of(folders, rows, unit, empty)
    if csv is not None:
        write_csv(cases, csv)
    if json:
        records = with_ids(folders, flags)
        terminal.print_json({"unit": unit, "empty": empty, "scores": table.to_dict("records"), "flags": records})
    else:
        terminal.print_sheet(score_sheet(table, unit=unit, empty=empty))
        terminal.print_flags(list(chain.from_iterable(flags.values())), none="No flag was raised.")
