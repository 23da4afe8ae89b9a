"""`medattack attack`: models x attacks x losses x budgets -> the table."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medseg_attack.cli import options, terminal
from medseg_attack.cli.progress import progress_bar
from medseg_attack.cli.studies import launch_study, open_study, print_plan, read_launch, say_unfinished
from medseg_attack.errors import InputError, duration
from medseg_attack.escaping import without_root

if TYPE_CHECKING:
    from medseg_attack.evaluation.studies.opened import OpenedStudy
    from medseg_attack.logs.base import Log

OWN = "each attack's own"


@terminal.command
def attack(
    data: options.Data = None,
    model: Annotated[list[str] | None, options.repeated("--model", "-m", help=options.model_to("attack"))] = None,
    attack: Annotated[
        list[str] | None,
        options.repeated("--attack", "-a", help="Attack with its options, such as 'pgd(steps=40)'.", default="fgsm"),
    ] = None,
    loss: Annotated[
        list[str] | None,
        options.repeated(
            "--loss", help="Objective that every attack maximises, such as bce or soft_dice.", default=OWN
        ),
    ] = None,
    eps: Annotated[
        list[str] | None,
        options.repeated(
            "--eps",
            "-e",
            help="Budget, such as 0.01, 4/255 or 5HU; of physical changes (bias fields, poses ...) in their own unit.",
            default=OWN,
        ),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="Norm of every attack: linf or l2.", show_default=OWN)] = None,
    steps: Annotated[
        int | None, typer.Option(help="Number of steps of every attack that has steps.", show_default=OWN)
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            help="Pixels that may change: body, outside:ORGAN, ring:10mm or mask:FILE.", show_default="everywhere"
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        options.repeated(
            "--metric", help="Measure beside Dice, such as hd95_mm or 'nsd(tolerance_mm=1)'.", default="none"
        ),
    ] = None,
    config: Annotated[
        Path | None, options.file_option("--config", "-c", help="Study file in YAML; options override its fields.")
    ] = None,
    out: options.RunsFolder = None,
    split: Annotated[
        str | None, typer.Option(help="Cases to attack: the test, val or train split, or all.", show_default="test")
    ] = None,
    fold: Annotated[
        int | None, typer.Option(help="Cross-validation fold of the val and train splits.", show_default="0")
    ] = None,
    limit: options.Limit = None,
    control: Annotated[
        bool | None,
        typer.Option("--control/--no-control", help="Add random noise of the same size.", show_default="control"),
    ] = None,
    native: Annotated[
        bool | None,
        typer.Option(
            "--native", help="Attack defended models as if the attacker did not know their defence.", show_default="no"
        ),
    ] = None,
    batch_size: options.BatchSizeOrAuto = "16",
    shard: options.Shard = "",
    launcher: options.Launcher = None,
    workers: options.Workers = 0,
    slurm: Annotated[
        list[str] | None,
        options.repeated(
            "--slurm", help="KEY=VALUE, an option of sbatch, such as partition=gpu or time=120.", default="time=240"
        ),
    ] = None,
    ray: Annotated[
        list[str] | None,
        options.repeated(
            "--ray",
            help="KEY=VALUE, an option of each Ray task, such as num_gpus=0.5.",
            default="a core, and a GPU where there is one",
        ),
    ] = None,
    save_adversarial: Annotated[
        str,
        typer.Option(
            help="Perturbed scans to write, in the source's format: all, worst:N (the N of lowest Dice) or none."
        ),
    ] = "none",
    keep_headers: Annotated[
        bool, typer.Option("--keep-headers", help="Keep names, dates and other headers of patients in written scans.")
    ] = False,
    checks: Annotated[
        bool, typer.Option("--checks/--no-checks", help="Examine what makes the numbers doubtful, and print flags.")
    ] = True,
    plan: options.Plan = False,
    unit: Annotated[
        Literal["slice", "volume", "patient"] | None,
        typer.Option("--unit", help=f"{options.SCORED}. `strongest` lowers its Dice.", show_default="volume"),
    ] = None,
    empty: options.EmptyRule = "one",
    log: options.Tracker = None,
    json: options.Json = False,
    device: options.Device = "auto",
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, max=4294967295, envvar="MEDATTACK_SEED", help="Seed of every random choice.", show_default="0"
        ),
    ] = None,
    home: options.Home = None,
    trust: options.Trust = False,
    progress: options.ShowProgress = True,
) -> None:
    """Attack trained models and print their Dice per organ. The table has clean and adversarial Dice, and Dice under
    random noise of the same size.

    Example: medattack attack --model unet --attack fgsm --attack 'pgd(steps=40)' --loss bce --eps 4/255

    Killed and started again, it goes on where it stopped.
    """
    fields = {
        "data": str(data) if data else None,
        "models": model,
        "attacks": attack,
        "losses": loss,
        "eps": eps,
        "norm": norm,
        "steps": steps,
        "region": region,
        "metrics": metrics,
        "split": split,
        "fold": fold,
        "limit": limit,
        "control": control,
        "seed": seed,
        "native": native,
        "unit": unit,
    }
    save = options.read_saved(save_adversarial)
    launch = read_launch(launcher, workers, shard, slurm or [], ray or [])
    parts = (0, 1) if launch else options.read_shard(shard)
    if keep_headers and save == "none":
        raise InputError("expected --save-adversarial beside --keep-headers, got none; add --save-adversarial all")
    options.require_written(plan, log=log)
    how = {
        "batch_size": options.read_batch_size(batch_size),
        "shard": parts,
        "save": save,
        "keep_headers": keep_headers,
        "checks": checks,
    }
    opened = open_study(fields, config, home=home, out=out, device=device, trust=trust, options=how)
    from medseg_attack.runs.study import naming_file
    from medseg_attack.stats.scores import check_unit

    with naming_file(opened.study):
        check_unit(opened.study.unit, [model_ref.dims for model_ref in opened.models])
    if plan:
        from medseg_attack.evaluation.costs.estimates import estimate

        with progress_bar("plan", len(opened.run_folders), show=progress) as advance:
            cost = estimate(opened, advance)
        print_plan({"": cost}, opened.out, json)
        return
    start = time.monotonic()
    if launch and not opened.is_finished and not launch_study(opened, launch, home, device, json, progress):
        return
    from medseg_attack.logs.base import open_log
    from medseg_attack.runs.workspace import home as workspace_of

    asked = {name: without_root(str(value)) for name, value in opened.study.model_dump().items()}
    asked["data"] = opened.data.name
    with open_log(log, workspace_of(home), opened.out.name, asked) as tracker:
        _run_and_print(opened, empty, json, progress, tracker, start)
    if log is not None:
        terminal.say(f"logged: {tracker.place}")


def _run_and_print(
    opened: "OpenedStudy", empty: options.EmptyRule, json: bool, progress: bool, log: "Log", start: float
) -> None:
    """Runs what is missing, then prints the tables of all runs, or says which shards are still to come."""
    from medseg_attack.evaluation.studies.running import run

    folders = opened.run_folders
    with progress_bar("attack", opened.total, show=progress) as advance:
        for n_done in run(opened):
            advance(n_done)
    if not opened.is_finished:
        say_unfinished(opened.out, opened.options.shard, "table", json)
        return
    _print_runs(folders, opened.study.unit, empty, json, log, checks=opened.options.checks)
    terminal.say(f"results: {opened.out}; {duration(time.monotonic() - start)}")
    partial = ["--allow-partial"] if opened.is_partial else []
    deltas = ["--deltas"] if opened.study.metrics else []  # shows distances, volumes and lost organs
    terminal.next_step(["compare", str(opened.out), *options.unit_words(opened.study.unit), *partial, *deltas])


def _print_runs(
    folders: Sequence[Path], unit: options.Unit, empty: options.EmptyRule, json: bool, log: "Log", *, checks: bool
) -> None:
    """Prints one table per model with its flags below, or the summary as JSON; a tracker gets one table of all."""
    from medseg_attack.checks.stored import flags_of, with_ids
    from medseg_attack.logs.values import run_values
    from medseg_attack.report.backdoors import backdoor_sheet
    from medseg_attack.report.sheet import each_caption_once
    from medseg_attack.report.tables.attacks import attack_sheet
    from medseg_attack.report.tables.comparison import compare_sheet
    from medseg_attack.runs.reading import read_runs
    from medseg_attack.runs.rows import HEADER
    from medseg_attack.stats.backdoors import backdoors, has_triggers
    from medseg_attack.stats.scores import summary

    rows = read_runs(folders, allow_partial=True)
    table = summary(rows, unit=unit, empty=empty, header=HEADER)
    log.points(run_values(table), 0)
    keys = ["model", "attack", "loss", "eps"]
    log.table(compare_sheet(table, keys, sort="by", unit=unit, empty=empty, every_organ=True), table)
    flags = flags_of(folders, rows, unit, empty) if checks else {}
    if json:
        records = with_ids(folders, flags)
        content = {"unit": unit, "empty": empty, "runs": table.to_dict("records"), "flags": records}
        if has_triggers(rows):
            content["backdoors"] = backdoors(rows, unit=unit, empty=empty).to_dict("records")
        terminal.print_json(content)
        return
    by_model = dict(iter(table.groupby(table["run"].map(lambda run: Path(run).parent), sort=False)))
    sheets = each_caption_once(attack_sheet(of_model, unit=unit, empty=empty) for of_model in by_model.values())
    for model, sheet in zip(by_model, sheets, strict=True):
        terminal.print_sheet(sheet)
        if checks:
            terminal.print_flags(flags[model])
    if has_triggers(rows):
        terminal.print_sheet(backdoor_sheet(backdoors(rows, unit=unit, empty=empty), unit=unit, empty=empty))
