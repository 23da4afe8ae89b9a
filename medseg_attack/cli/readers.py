"""`medattack readers`: a study with people who say which picture is altered, and the scores of their answers."""

from pathlib import Path
from typing import Annotated

import typer

from medseg_attack.cli import options, terminal
from medseg_attack.errors import InputError, plural


@terminal.command
def readers(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run; with --score that of a study with readers.")
    ],
    out: Annotated[Path | None, options.file_option("--out", "-o", help="New folder for the study.")] = None,
    score: Annotated[
        list[Path] | None, options.repeated("--score", help="CSV file of a reader's answers to score.")
    ] = None,
    trials: Annotated[int, typer.Option("--trials", min=3, help="Number of pairs that a reader sees.")] = 100,
    blocks: Annotated[
        int, typer.Option("--blocks", min=1, help="Number of blocks of pairs, between which the page pauses.")
    ] = 1,
    block: Annotated[
        int | None,
        typer.Option(
            "--block",
            min=1,
            help="With --score, block that counts alone, such as that before a teaching.",
            show_default="all",
        ),
    ] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
    device: options.Device = "auto",
    home: options.Home = None,
    trust: options.Trust = False,
) -> None:
    """Ask people which of two pictures is altered. Writes pairs of pictures of a run with a page that asks offline, or
    scores the answers that the page saved.

    Example: medattack readers medattack_runs/runs/uw-1a2b3c4d/unet/01_pgd --out study

    Example: medattack readers study --score answers_a.csv --score answers_b.csv
    """
    if (out is None) == (not score):
        raise InputError("expected --out to write a study or --score to score answers; give one of them")
    if out is None:
        _score(run, score or [], block, json)
        return
    from medseg_attack.models.trust import use_trust
    from medseg_attack.report.readers.writing import require_blocks, require_new
    from medseg_attack.runs.workspace import home as workspace_of

    require_new(out)
    require_blocks(blocks, trials)
    use_trust(workspace_of(home), trust)
    _write(run, out, trials, blocks, seed, device)


def _write(run: Path, out: Path, n: int, blocks: int, seed: int, device: str) -> None:
    from medseg_attack.evaluation.pictures.reader_trials import reader_trials
    from medseg_attack.report.readers.writing import write_study
    from medseg_attack.runs.reading import find_runs
    from medseg_attack.runtime import pick_device

    run, *others = find_runs([run])
    if others:
        raise InputError(f"expected one run, got {run}, {others[0]} and perhaps others; give the folder of one")
    trials = reader_trials(run, n, seed, pick_device(device))
    page = write_study(trials, out, seed, blocks)
    attacked = [trial for trial in trials if trial.kind == "attack"]
    if equal := sum(bool((trial.untouched == trial.altered).all()) for trial in attacked):
        terminal.say(f"note: {equal} of {len(attacked)} attacked pictures are equal to the untouched ones in 8 bits")
    patients = plural(len({trial.patient for trial in trials}), "patient")
    terminal.say(
        f"wrote {plural(n, 'pair')} of {patients}; give the readers {page.parent}, and keep {out / 'key.json'}"
    )
    terminal.next_step(["readers", str(out), "--score", "answers_NAME.csv"])


def _score(folder: Path, files: list[Path], block: int | None, json: bool) -> None:
    from medseg_attack.report.readers.answers import read_answers, reading_sheet
    from medseg_attack.report.readers.scores import readings
    from medseg_attack.report.readers.writing import read_key

    table = readings(read_answers(files, read_key(folder), block))
    if json:
        terminal.print_json({"readers": table.to_dict("records")})
    else:
        terminal.print_sheet(reading_sheet(table))
