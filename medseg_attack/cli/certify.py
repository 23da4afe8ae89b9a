"""`medattack certify`: bounds that no change within an L2 radius gets below."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from medseg_attack.cli import options, terminal
from medseg_attack.cli.progress import progress_bar
from medseg_attack.cli.studies import say_unfinished
from medseg_attack.errors import InputError, plural

if TYPE_CHECKING:
    from medseg_attack.evaluation.certifying import Certification

SplitName: TypeAlias = Literal["test", "val", "train", "all"]


@terminal.command
def certify(
    data: options.Data = None,
    model: Annotated[str, typer.Option("--model", "-m", help=options.model_to("certify"))] = "",
    certificate: Annotated[
        str, typer.Option("--certificate", "-c", help="Certificate with its options; medattack ls certificates.")
    ] = "expected_dice",
    radius: Annotated[
        list[float] | None,
        options.repeated(
            "--radius",
            "-r",
            help="L2 norm of a change of the whole scan, where the window is 0 to 1; of demasked, columns of a patch.",
            default="the certificate's own: sigma x 0.25, 0.5, 1",
        ),
    ] = None,
    check: Annotated[
        int, typer.Option("--check", min=0, help="Scans on which an attack within each radius tries to refute it.")
    ] = 2,
    split: Annotated[SplitName, typer.Option("--split", help="Cases to certify.")] = "test",
    fold: options.Fold = 0,
    limit: Annotated[
        float | None,
        typer.Option(
            "--limit",
            help="Certify only this many cases, or this share of them if below 1; whole scans until there are so many.",
            show_default="all",
        ),
    ] = None,
    csv: Annotated[
        Path | None, options.file_option("--csv", help="Write the bounds of every scan and organ to this file.")
    ] = None,
    plot: Annotated[
        Path | None, options.file_option("--plot", help="Draw the bounds over the radius into this PNG, PDF or SVG.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the results.", show_default="<home>/certificates/<model>-<hash>"),
    ] = None,
    batch_size: options.BatchSize = 32,
    shard: options.Shard = "",
    plan: Annotated[bool, typer.Option("--plan", help="Print the passes of the bounds; write nothing.")] = False,
    json: options.Json = False,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    home: options.Home = None,
    trust: options.Trust = False,
    progress: options.ShowProgress = True,
) -> None:
    """Bound how far changes within a radius can move a model. The bounds are per organ, for any change of a
    scan within an L2 radius, or for patches; an attack tries to refute them on a few scans, and exit code 1 says that
    it did.

    Example: medattack certify --model unet_small --certificate 'expected_dice(sigma=0.1, draws=500)' --radius 0.05
    """
    if not model:
        raise InputError("expected a model, got none; give --model NAME")
    options.require_written(plan, csv=csv, plot=plot)
    parts = options.read_shard(shard)
    todo = _opened(model, certificate, radius, data, home, trust, split, fold, limit, check, seed, out)
    from medseg_attack.evaluation.certifying import MAPS
    from medseg_attack.evaluation.certifying import certify as run
    from medseg_attack.report.figures import require_own_figure
    from medseg_attack.report.sheet import require_own_csv
    from medseg_attack.runtime import pick_device

    where = pick_device(device)
    for file, require_own in ((csv, require_own_csv), (plot, require_own_figure)):
        if file is not None:
            require_own(file)
    todo.require()
    k, n = parts
    scans = len(todo.scans[k::n])
    terminal.say(f"data {todo.data.root}; model {todo.model_ref.name}; on {where}")
    if plan:
        _print_plan(todo, parts, json)
        return
    with progress_bar("certify", scans, show=progress) as advance:
        for n_done in run(todo, where, batch_size=batch_size, shard=parts):
            advance(n_done)
    if not todo.is_finished:
        say_unfinished(todo.out, parts, "table", json)
        return
    terminal.say(f"results: {todo.out}")
    if (todo.out / MAPS).is_dir():
        terminal.say(f"maps of abstained pixels (orange): {todo.out / MAPS}")
    _print(todo, csv, plot, json)


def _opened(
    model: str,
    certificate: str,
    radius: list[float] | None,
    data: Path | None,
    home: Path | None,
    trust: bool,
    split: SplitName,
    fold: int,
    limit: float | None,
    check: int,
    seed: int,
    out: Path | None,
) -> "Certification":
    from medseg_attack import registry
    from medseg_attack.models.trust import use_trust
    from medseg_attack.runs.workspace import home as workspace_of

    workspace = workspace_of(home)
    use_trust(workspace, trust)
    method = registry.build(certificate, "certificate")
    radii = method.radii(radius or ())
    from medseg_attack.data.prepared.subsets import limit as limited
    from medseg_attack.evaluation.certifying import Certification
    from medseg_attack.evaluation.opening import open_model
    from medseg_attack.runs.grid import safe
    from medseg_attack.storage.json_files import digest

    model_ref, prepared = open_model(model, workspace, data)
    cases = prepared.refs(split, fold, model_ref.dims)
    refs = limited(cases, limit, whole_scans=True)
    if method.needs_phases:
        patients = {ref.group for ref in refs}
        refs = [ref for ref in cases if ref.group in patients]
    partial = len(refs) < len(cases)
    todo = Certification(method, model_ref, prepared, refs, radii, check, seed, out or Path(), partial)
    if out is None:
        folder = workspace / "certificates" / f"{safe(model_ref.label)[:80]}-{digest(todo.config)[:8]}"
        todo = replace(todo, out=folder)
    return todo


def _print_plan(todo: "Certification", shard: tuple[int, int], json: bool) -> None:
    """Prints the passes of a shard."""
    k, n_shards = shard
    part = replace(todo, refs=[ref for scan in todo.scans[k::n_shards] for ref in scan])
    facts = {"scans": len(part.scans), "cases": len(part.refs), "forwards": part.forwards}
    if json:
        terminal.print_json(facts | {"out": str(todo.out)})
    else:
        terminal.show(*(f"{name:<9} {value:,}" for name, value in facts.items()), f"out       {todo.out}")
        if n := 0 if todo.model_ref.black_box else len(range(k, min(todo.checked, len(todo.scans)), n_shards)):
            terminal.conclude(
                f"On top come the attacks that try to refute the bounds of {plural(n, 'scan')} at each radius, and "
                "the bounds of what they change: several times as many passes for each; --check 0 leaves them out."
            )


def _print(todo: "Certification", csv: Path | None, plot: Path | None, json: bool) -> None:
    """Prints the table and its flags; exit code 1 if an attack refuted a bound."""
    from medseg_attack import registry
    from medseg_attack.checks.certified import check_soundness
    from medseg_attack.report.certificates import certificate_curve, certificate_sheet, certificate_summary
    from medseg_attack.report.sheet import write_csv
    from medseg_attack.runs.folder import RunFolder

    rows, method = RunFolder(todo.out).rows(), todo.certificate
    flags = check_soundness(rows)
    trained_on = len(todo.data.patients_with(todo.model_ref.training_scans, todo.refs))
    if csv is not None:
        write_csv(rows.assign(run=str(todo.out)).set_index("run").reset_index(), csv)
        terminal.say(f"wrote {csv}")
    if plot is not None:
        certificate_curve(rows, method, plot)
        terminal.say(f"wrote {plot}")
    if json:
        content = certificate_summary(rows, method.quantity).to_dict("records")
        facts: dict[str, Any] = {"model": todo.model_ref.label, "data": todo.data.name}
        facts |= {"certificate": registry.spec(method), "quantity": method.quantity, "partial": todo.partial}
        facts |= {"trained_on": trained_on, "radii": content}
        terminal.print_json(facts | {"flags": [flag.record() for flag in flags]})
    else:
        title = f"{registry.spec(method)} of {todo.model_ref.label} on {todo.data.name}"
        about: Any = {"unit": todo.unit, "prompt": todo.model_ref.prompt, "partial": todo.partial}
        terminal.print_sheet(certificate_sheet(rows, method, title=title, **about))
        terminal.conclude(_verdict(todo, bool(rows["checked"].any())))
        if trained_on:
            patients = plural(len({ref.group for ref in todo.refs}), "patient")
            terminal.conclude(
                f"The model was trained on {trained_on} of the {patients}: new ones may have lower bounds."
            )
        if flags:
            terminal.print_flags(flags)
    if flags:
        raise typer.Exit(terminal.FAILED)


def _verdict(todo: "Certification", is_checked: bool) -> str:
    if is_checked:
        n = min(todo.checked, len(todo.scans))
        return f"An attack within each radius was run against the bounds of {plural(n, 'scan')}."
    reason = "the model has no gradient" if todo.model_ref.black_box else "--check 0"
    return f"No attack was run against the bounds: {reason}."
