"""`medattack attack`: models x attacks x losses x budgets -> the table."""

import dataclasses
import time
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medseg_attack.cli import terminal
from medseg_attack.cli.terminal import Device, Home, Json, ShowProgress
from medseg_attack.errors import InputError, plural

if TYPE_CHECKING:
    from medseg_attack.checks.flags import Finding
    from medseg_attack.evaluation.runner import OpenedStudy

Data = Annotated[
    Path | None, typer.Option("--data", "-d", help="Prepared data set. [default: the newest]", show_default=False)
]
Unit = Annotated[Literal["slice", "volume", "patient"], typer.Option("--unit", help="What is scored.")]
EmptyRule = Annotated[
    Literal["one", "nan", "zero"], typer.Option("--empty", help="Dice of an organ that is absent; nan: left out.")
]


def _many(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help + " Repeat for several.", show_default=False)


@terminal.command
def attack(
    data: Data = None,
    model: Annotated[
        list[str] | None, _many("--model", "-m", help="Name of a trained model, its folder, or 'own(...)'.")
    ] = None,
    attack: Annotated[list[str] | None, _many("--attack", "-a", help="fgsm [default], 'pgd(steps=40)' ...")] = None,
    loss: Annotated[list[str] | None, _many("--loss", help="Objective of every attack: bce, soft_dice ...")] = None,
    eps: Annotated[
        list[str] | None, _many("--eps", "-e", help="Budget: 0.01 or 4/255; of bias fields, poses ... in their unit.")
    ] = None,
    norm: Annotated[str | None, typer.Option(help="linf or l2, of every attack.", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(help="Of every attack that has steps.", show_default=False)] = None,
    region: Annotated[
        str | None,
        typer.Option(help="Where pixels may change: body, outside:ORGAN, ring:10mm or mask:FILE.", show_default=False),
    ] = None,
    metrics: Annotated[list[str] | None, _many("--metric", help="hd95_mm, 'nsd(tolerance_mm=1)' ...")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Study in YAML; flags go before it.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the results.", show_default=False)] = None,
    split: Annotated[str | None, typer.Option(help="test, val, train or all.", show_default="test")] = None,
    fold: Annotated[int | None, typer.Option(help="Of the val and train splits.", show_default="0")] = None,
    limit: Annotated[
        float | None, typer.Option(help="Only so many cases, or a share below 1.", show_default=False)
    ] = None,
    control: Annotated[
        bool | None, typer.Option("--control/--no-control", help="Noise of the same size.", show_default="on")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Cases at a time.")] = 16,
    shard: Annotated[str, typer.Option(help="k/N: run the k-th of N parts, from 0.")] = "0/1",
    save_adversarial: Annotated[
        str, typer.Option(help="Write perturbed scans in the source's format: all, worst:N or none.")
    ] = "none",
    keep_headers: Annotated[
        bool, typer.Option("--keep-headers", help="Perturbed scans keep names, dates and other headers of patients.")
    ] = False,
    checks: Annotated[bool, typer.Option("--checks/--no-checks", help="Look for what makes numbers doubtful.")] = True,
    plan: Annotated[bool, typer.Option("--plan", help="Print the grid and what it would cost; write nothing.")] = False,
    unit: Unit = "volume",
    empty: EmptyRule = "one",
    json: Json = False,
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(envvar="MEDATTACK_SEED", help="Of it all.", show_default="0")] = None,
    home: Home = None,
    progress: ShowProgress = True,
) -> None:
    """Attack trained models and print clean and adversarial Dice per organ, beside noise of the same size.

    Example: medattack attack --model unet --attack fgsm --attack 'pgd(steps=40)' --loss bce --eps 4/255

    Killed and started again, it goes on where it stopped.
    """
    flags = {
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
    }
    save = _saved(save_adversarial)
    if keep_headers and save == "none":
        raise InputError("expected --save-adversarial beside --keep-headers, got none; add --save-adversarial all")
    benchmark = opened(config, flags, home, device, out, batch_size, _shard(shard), save, keep_headers)
    check_unit(unit, [resolve.dims for resolve in benchmark.models])
    if plan:
        _print_plan(benchmark, json)
        return
    benchmark = dataclasses.replace(benchmark, checks=checks)
    run_and_print(benchmark, unit, empty, json, progress)


def opened(
    config: Path | None,
    flags: dict[str, Any],
    home: Path | None,
    device: str,
    out: Path | None,
    batch_size: int,
    shard: tuple[int, int],
    save: str,
    keep_headers: bool = False,
) -> "OpenedStudy":
    """The study that file and flags describe, its data and checkpoints found; says which were taken."""
    from dataclasses import replace

    from medseg_attack.runs.grid import cells
    from medseg_attack.runs.study import read_study
    from medseg_attack.runs.workspace import home as workspace_of
    from medseg_attack.runs.workspace import newest_data

    workspace = workspace_of(home)
    study = read_study(config, flags)
    prepared = (
        Path(study.data) if study.data else newest_data(workspace)
    )  # nothing there is told before torch is loaded
    cells(study)  # a typing error in an attack is told before anything slow happens
    from medseg_attack.data.prepared.reading import open_prepared
    from medseg_attack.evaluation.runner import OpenedStudy, default_out, with_distinct_labels
    from medseg_attack.models.model_ref import resolve
    from medseg_attack.runtime import pick_device

    names = [named(workspace, name) for name in study.models]
    data = open_prepared(prepared)
    models = with_distinct_labels([resolve(name, data.task) for name in names])
    study = study.model_copy(update={"data": str(data.root), "models": names})
    where = pick_device(device)
    terminal.say(f"data {data.root}; {', '.join(f'model {name}' for name in names)}; on {where}")
    benchmark = OpenedStudy(study, data, models, out or Path(), where, batch_size, shard, save, keep_headers)
    return benchmark if out else replace(benchmark, out=default_out(workspace, benchmark))


def named(workspace: Path, name: str) -> str:
    """The folder of the checkpoint of that name, or the spec itself if its model needs no training and has none."""
    from medseg_attack import registry
    from medseg_attack.runs.workspace import newest_model

    ready = registry.brings_weights(name) and not Path(name).exists()
    label = _canonical(name, strict=ready)
    try:
        return str(newest_model(workspace, label))
    except InputError:
        if not ready:
            raise
    return label


def _canonical(name: str, *, strict: bool) -> str:
    """A spec as checkpoints spell it; anything else as it is, unless it must be one."""
    from medseg_attack import registry

    try:
        return registry.spec(registry.build(name, "model")) if strict or "(" in name else name
    except InputError:
        if strict:
            raise
        return name


def check_unit(unit: Unit, dims: Iterable[float]) -> None:
    """Refuses slices of a model that sees whole scans, whose rows are of scans."""
    if unit == "slice" and 3 in dims:
        raise InputError(
            "expected --unit volume or patient for a 3-D model, whose rows are of whole scans, got slice; choose one"
        )


def run_and_print(benchmark: "OpenedStudy", unit: Unit, empty: EmptyRule, json: bool, progress: bool) -> None:
    """Runs what is missing, then prints the tables of all runs, or says which shards are still to come."""
    from medseg_attack.evaluation.runner import run

    runs = benchmark.runs()
    start = time.monotonic()
    with terminal.progress("attack", benchmark.total, show=progress) as advance:
        for done, _ in run(benchmark):
            advance(done)
    folders = [folder for _, _, folder in runs]
    if not all((folder / "run.json").exists() for folder in folders):
        k, n = benchmark.shard
        terminal.say(f"shard {k}/{n} is done; run the others into {benchmark.out}, the last one prints the table")
        if json:
            terminal.print_json({"finished": False, "shard": [k, n], "out": str(benchmark.out)})
        return
    print_runs(folders, unit, empty, json, checks=benchmark.checks)
    terminal.say(f"results: {benchmark.out}; {time.monotonic() - start:.0f} s")
    partial = [] if benchmark.study.limit is None else ["--allow-partial"]
    deltas = ["--deltas"] if benchmark.study.metrics else []  # where distances, volumes and lost organs are shown
    terminal.next_step(terminal.shell(["compare", str(benchmark.out), *partial, *deltas]))


def print_runs(folders: Sequence[Path], unit: Unit, empty: EmptyRule, json: bool, *, checks: bool = False) -> None:
    """One table per model on stdout with its flags below, or the summary as JSON."""
    from medseg_attack.report.sheet import rich_table
    from medseg_attack.report.tables import attack_sheet
    from medseg_attack.runs.reading import read_runs
    from medseg_attack.runs.rows import HEADER
    from medseg_attack.stats.scores import summary

    rows = read_runs(folders, allow_partial=True)
    table = summary(rows, unit=unit, empty=empty, header=HEADER)
    flags = {of: _flags(of, rows, unit, empty) for of in dict.fromkeys(folder.parent for folder in folders) if checks}
    if json:
        told = [{"model": of.name} | one.record() for of, found in flags.items() for one in found]
        terminal.print_json({"unit": unit, "empty": empty, "runs": table.to_dict("records"), "flags": told})
        return
    for of, of_model in table.groupby(table["run"].map(lambda run: Path(run).parent), sort=False):
        terminal.out().print(rich_table(attack_sheet(of_model, unit=unit, empty=empty)))
        if checks:
            terminal.print_flags(flags[of])


def _flags(of: Path, rows: Any, unit: Unit, empty: EmptyRule) -> "list[Finding]":
    from medseg_attack.checks.flags import by_severity
    from medseg_attack.checks.rows import check_rows
    from medseg_attack.checks.stored import read_before

    mine = rows[rows["run"].map(lambda run: Path(run).parent == of)]
    return by_severity([*read_before(of), *check_rows(mine, unit=unit, empty=empty)])


def _saved(text: str) -> str:
    if text in ("all", "none") or (text.startswith("worst:") and text[6:].isdigit() and int(text[6:]) > 0):
        return text
    raise InputError(f"expected --save-adversarial all, worst:N or none, got {text!r}; write worst:20 for twenty files")


def _shard(text: str) -> tuple[int, int]:
    k, _, n = text.partition("/")
    if not (k.isdigit() and n.isdigit() and int(k) < int(n)):
        raise InputError(f"expected --shard as k/N with 0 <= k < N, got {text!r}; write 0/4 for the first of four")
    return int(k), int(n)


def _print_plan(benchmark: "OpenedStudy", json: bool) -> None:
    from dataclasses import asdict

    from rich import box
    from rich.table import Table

    from medseg_attack.evaluation.costs import estimate
    from medseg_attack.registry import spec

    costs = list(estimate(benchmark))
    sizes = [[prod(ref.shape) for ref in benchmark.refs(model)] for model in benchmark.models]
    n, pixels = max(map(len, sizes)), max(map(sum, sizes))
    megabytes = len(costs) * (n * 100 * len(benchmark.data.task.scored) + 8 * pixels * (benchmark.save != "none")) / 1e6
    seconds = sum(one.seconds for one in costs) / benchmark.shard[1]
    peak = max(one.peak_mb for one in costs)
    if json:
        runs = [asdict(one) for one in costs]
        told = {"seconds": seconds, "disk_mb": megabytes, "memory_mb": peak}
        terminal.print_json({"cases": n, "runs": runs} | told)
        return
    table = Table(
        "model", "attack", "loss", "eps", "forwards", "backwards", "seconds", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for one in costs:
        table.add_row(
            one.model, one.attack, one.loss, spec(one.eps), f"{one.forwards}", f"{one.backwards}", f"{one.seconds:.0f}"
        )
    terminal.out().print(table)
    runs_of = f"{plural(len(costs), 'run')} of {plural(n, 'case')}"
    print(f"{runs_of}: about {seconds:.0f} s, {peak:.0f} MB of memory, {megabytes:.1f} MB in {benchmark.out}")
