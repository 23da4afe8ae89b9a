"""`medattack evaluate`: scores of clean or of stored images, per organ and case."""

from pathlib import Path
from typing import Annotated

import typer

from medseg_attack.cli import terminal
from medseg_attack.cli.attack import Data, EmptyRule, Unit, check_unit, opened
from medseg_attack.cli.terminal import Device, Home, Json, ShowProgress
from medseg_attack.errors import InputError


@terminal.command
def evaluate(
    data: Data = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Name of a trained model, or its folder.")] = "",
    images: Annotated[
        Path | None,
        typer.Option(
            "--images", help="Score the images that this run stored instead of clean ones.", show_default=False
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Beside Dice and IoU.", show_default="hd95_mm, assd_mm, nsd(tolerance_mm=2)"),
    ] = None,
    split: Annotated[str, typer.Option(help="test, val, train or all.")] = "test",
    fold: Annotated[int, typer.Option(help="Of the val and train splits.")] = 0,
    limit: Annotated[float | None, typer.Option(help="Only so many cases, or a share.", show_default=False)] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Write every case and organ to this file.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the results.", show_default=False)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Cases at a time.")] = 16,
    unit: Unit = "volume",
    empty: EmptyRule = "one",
    json: Json = False,
    device: Device = "auto",
    home: Home = None,
    progress: ShowProgress = True,
) -> None:
    """Score a trained model on clean images, or on the perturbed images of a run (what transfers to this model).

    Example: medattack evaluate --model unet --images medattack_runs/runs/uw-1a2b3c4d
    """
    if not model:
        raise InputError("expected a model, got none; give --model NAME")
    attacks = ["clean"] if images is None else [_replay(run) for run in _stored(images)]
    if images is not None:
        split, fold, limit = _cases_of(_stored(images)[0], split, fold, limit)
    flags = {
        "data": str(data) if data else None,
        "models": [model],
        "attacks": attacks,
        "control": False,
        "split": split,
        "fold": fold,
        "limit": limit,
        "metrics": metrics or ["hd95_mm", "assd_mm", "nsd"],
    }
    benchmark = opened(None, flags, home, device, out, batch_size, (0, 1), "none")
    check_unit(unit, [given.dims for given in benchmark.models])
    from medseg_attack.evaluation.runner import run

    with terminal.progress("evaluate", benchmark.total, show=progress) as advance:
        for done, _ in run(benchmark):
            advance(done)
    _print([folder for _, _, folder in benchmark.runs()], unit, empty, csv, json)
    terminal.say(f"results: {benchmark.out}")
    where = ["--data", str(data)] if data else []
    how = ["--attack", "square"] if benchmark.models[0].black_box else ["--loss", "bce"]
    terminal.next_step(terminal.shell(["attack", *where, "--model", model, *how, "--eps", "4/255"]))


def _stored(images: Path) -> list[Path]:
    from medseg_attack.runs.reading import find_runs

    runs = [run for run in find_runs([images]) if (run / "images").is_dir()]
    if not runs:
        raise InputError(f"expected stored images in {images}, got none; run the attack with --save-adversarial all")
    return [run.resolve() for run in runs]


def _replay(run: Path) -> str:
    from medseg_attack.files import digest, read_json

    return f"replay(run={str(run)!r}, content={digest(read_json(run / 'config.json'))[:12]!r})"


def _cases_of(run: Path, split: str, fold: int, limit: float | None) -> tuple[str, int, float | None]:
    """The choice of cases that the run was made with; what is asked for if that is not known."""
    import yaml

    study = run.parent.parent / "study.yaml"
    if not study.exists():
        return split, fold, limit
    made = yaml.safe_load(study.read_text(encoding="utf-8"))
    return made["split"], made["fold"], made["limit"]


def _print(folders: list[Path], unit: Unit, empty: EmptyRule, csv: Path | None, json: bool) -> None:
    from medseg_attack.files import whole
    from medseg_attack.report.sheet import csv_text, rich_table
    from medseg_attack.report.tables import score_sheet
    from medseg_attack.runs.reading import read_runs
    from medseg_attack.stats.scores import scores

    rows = read_runs(folders, allow_partial=True)
    table, cases = scores(rows, unit=unit, empty=empty)
    if csv is not None:
        with whole(csv) as part:
            part.write_text(csv_text(cases), encoding="utf-8")
    if json:
        terminal.print_json({"unit": unit, "empty": empty, "scores": table.to_dict("records")})
    else:
        terminal.out().print(rich_table(score_sheet(table, unit=unit, empty=empty)))
