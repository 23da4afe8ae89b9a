"""`medattack evaluate`: scores of clean or of stored images, per organ and case."""

from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg_attack.cli import options, terminal
from medseg_attack.cli.progress import progress_bar
from medseg_attack.cli.studies import open_study
from medseg_attack.errors import InputError

METRICS = ["hd95_mm", "assd_mm", "nsd"]


@terminal.command
def evaluate(
    data: options.Data = None,
    model: Annotated[str, typer.Option("--model", "-m", help=options.model_to("score"))] = "",
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
        options.repeated(
            "--metric", help="Measure beside Dice and IoU.", default="hd95_mm, assd_mm, nsd(tolerance_mm=2)"
        ),
    ] = None,
    split: options.Split = "test",
    fold: options.Fold = 0,
    limit: options.Limit = None,
    csv: Annotated[
        Path | None, options.file_option("--csv", help="Write the scores of every case and organ to this file.")
    ] = None,
    out: options.RunsFolder = None,
    batch_size: options.BatchSizeOrAuto = "16",
    unit: options.Unit = "volume",
    empty: options.EmptyRule = "one",
    json: options.Json = False,
    device: options.Device = "auto",
    home: options.Home = None,
    trust: options.Trust = False,
    progress: options.ShowProgress = True,
) -> None:
    """Score a trained model on clean or on stored images. Images that were perturbed for another model show what
    transfers to this one.

    Example: medattack evaluate --model unet --images medattack_runs/runs/uw-1a2b3c4d
    """
    if not model:
        raise InputError("expected a model, got none; give --model NAME")
    fields: dict[str, Any] = {
        "data": str(data) if data else None,
        "models": [model],
        "attacks": ["clean"],
        "control": False,
        "split": split,
        "fold": fold,
        "limit": limit,
        "metrics": metrics or METRICS,
    }
    from medseg_attack.report.sheet import require_own_csv
    from medseg_attack.runs.replays import replay_fields

    if csv is not None:
        require_own_csv(csv)
    fields |= replay_fields(images) if images else {}
    how = {"batch_size": options.read_batch_size(batch_size), "checks": True}
    opened = open_study(fields, home=home, out=out, device=device, trust=trust, options=how)
    from medseg_attack.evaluation.studies.running import run
    from medseg_attack.stats.scores import check_unit

    check_unit(unit, [model_ref.dims for model_ref in opened.models])
    with progress_bar("evaluate", opened.total, show=progress) as advance:
        for n_done in run(opened):
            advance(n_done)
    _print(opened.run_folders, unit, empty, csv, json)
    terminal.say(f"results: {opened.out}")
    words = ["--data", str(data)] if data else []
    attack = ["--attack", "square"] if opened.models[0].black_box else ["--loss", "bce"]
    terminal.next_step(["attack", *words, "--model", model, *attack, "--eps", "4/255"])


def _print(folders: list[Path], unit: options.Unit, empty: options.EmptyRule, csv: Path | None, json: bool) -> None:
    from medseg_attack.checks.stored import flags_of, with_ids
    from medseg_attack.report.sheet import write_csv
    from medseg_attack.report.tables.scores import score_sheet
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
