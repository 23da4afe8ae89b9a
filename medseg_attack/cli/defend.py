"""`medattack defend`: what a defence is worth, against attacks that do not know it and attacks that do."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg_attack.cli import options, terminal
from medseg_attack.cli.progress import progress_bar
from medseg_attack.cli.studies import print_plan, say_unfinished
from medseg_attack.errors import duration

if TYPE_CHECKING:
    from medseg_attack.evaluation.trials import Trial


@terminal.command
def defend(
    model: Annotated[
        list[str], typer.Argument(help="Defended models: names of trained ones, or specs such as \"voted('unet')\".")
    ],
    against: Annotated[
        list[str] | None,
        options.repeated("--against", "-a", help="Attack of the suite, such as strongest.", default="pgd(steps=40)"),
    ] = None,
    twin: Annotated[
        str | None,
        typer.Option(
            "--twin", help="Undefended model to compare with.", show_default="the model within each defended one"
        ),
    ] = None,
    data: options.Data = None,
    loss: Annotated[
        list[str] | None,
        options.repeated("--loss", help="Objective that every attack maximises.", default="each attack's own"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of steps of the attacks that are added to the suite to try harder.",
            show_default="twice the suite's, 80 or more",
        ),
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option(
            "--queries",
            min=1,
            help="Times that the search without gradients asks about each image.",
            show_default="1000",
        ),
    ] = None,
    eps: Annotated[
        str | None, typer.Option("--eps", "-e", help="Budget, such as 4/255.", show_default="each attack's own")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the results.", show_default="<home>/runs/defend-<data>-<hash>"),
    ] = None,
    split: options.Split = "test",
    fold: options.Fold = 0,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 16,
    shard: options.Shard = "",
    plan: options.Plan = False,
    unit: options.Unit = "volume",
    empty: options.EmptyRule = "one",
    csv: Annotated[Path | None, options.file_option("--csv", help="Write all numbers to this file.")] = None,
    json: options.Json = False,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    home: options.Home = None,
    trust: options.Trust = False,
    progress: options.ShowProgress = True,
) -> None:
    """Say what defences are worth. Each model and its undefended twin are attacked by a suite that does not know the
    defence, by one that knows it and tries harder, by images from the twin, without gradients, and by noise.

    Example: medattack defend "guarded('unet_small', [bit_depth(bits=3)])" --against 'pgd(steps=40)' --eps 8/255

    Killed and started again, it goes on where it stopped. The runs are ordinary ones, which compare reads, too.
    """
    fields = {
        "data": str(data) if data else None,
        "models": model,
        "attacks": against or ["pgd(steps=40)"],
        "losses": loss,
        "eps": [eps] if eps else None,
        "steps": steps,
        "split": split,
        "fold": fold,
        "limit": limit,
        "seed": seed,
        "unit": unit,
    }
    options.require_written(plan, csv=csv)
    parts = options.read_shard(shard)
    from medseg_attack.models.trust import use_trust
    from medseg_attack.report.sheet import require_own_csv
    from medseg_attack.runs import workspace
    from medseg_attack.runs.study import read_study

    if csv is not None:
        require_own_csv(csv)
    folder = workspace.home(home)
    use_trust(folder, trust)
    study = read_study(None, fields)
    from medseg_attack.evaluation.studies.opened import RunOptions
    from medseg_attack.evaluation.trials import group_by_twin, open_trials
    from medseg_attack.runtime import pick_device
    from medseg_attack.stats.scores import check_unit

    how = RunOptions(batch_size=batch_size, shard=parts, checks=True)
    trials = open_trials(group_by_twin(model, twin, folder), study, folder, pick_device(device), how, out, queries)
    check_unit(unit, [each.dims for trial in trials for each in trial.parts["native"].models])
    root = out or (trials[0].folder.parent if len(trials) > 1 else trials[0].folder)
    if plan:
        from medseg_attack.evaluation.costs.estimates import estimate

        studies = {each.out.relative_to(root).as_posix(): each for trial in trials for each in trial.parts.values()}
        n_runs = sum(len(each.run_folders) for each in studies.values())
        with progress_bar("plan", n_runs, show=progress) as advance:
            costs = {part: estimate(each, advance) for part, each in studies.items()}
        print_plan(costs, root, json)
        return
    start = time.monotonic()
    with progress_bar("defend", sum(trial.total for trial in trials), show=progress) as advance:
        for trial in trials:
            for n_done in trial.run():
                advance(n_done)
    if not all((run / "run.json").exists() for trial in trials for runs in trial.run_folders.values() for run in runs):
        say_unfinished(root, parts, "tables", json)
        return
    _print(trials, unit, empty, csv, json)
    terminal.say(f"results: {root}; {duration(time.monotonic() - start)}")
    partial = any(part.is_partial for trial in trials for part in trial.parts.values())
    terminal.next_step(["report", str(root), *options.unit_words(unit), *(["--allow-partial"] if partial else [])])


def _print(trials: "list[Trial]", unit: options.Unit, empty: options.EmptyRule, csv: Path | None, json: bool) -> None:
    """Prints one table per organ and twin, the flags of each, and the verdicts; or all of that as JSON."""
    from medseg_attack.checks.rows.asking import check_rows
    from medseg_attack.checks.rows.strength import check_knowledge
    from medseg_attack.report.defences import conclusion, trial_rows, trial_sheets, trial_table
    from medseg_attack.report.sheet import write_csv

    tables, content = [], []
    for trial in trials:
        trial.store()
        rows = trial_rows(trial.folder)
        table = trial_table(trial.folder, rows, unit=unit, empty=empty)
        tables.append(table)
        flags = check_rows(rows, unit=unit, empty=empty, checks=[check_knowledge])
        content.append({"twin": trial.twin, "models": table.to_dict("records"), "flags": [f.record() for f in flags]})
        if not json:
            for sheet in trial_sheets(table, unit=unit, empty=empty):
                terminal.print_sheet(sheet)
            terminal.print_flags(flags)
            terminal.conclude(*conclusion(table))
    if csv is not None:
        import pandas as pd

        numbers = pd.concat(tables, ignore_index=True)
        write_csv(numbers.assign(run=numbers["model"])[["run", *numbers.columns]], csv)
    if json:
        terminal.print_json({"unit": unit, "empty": empty, "trials": content})
