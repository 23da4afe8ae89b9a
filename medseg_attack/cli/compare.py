"""`medattack compare`: runs side by side, or against a reference and a gate's rules, from their rows alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medseg_attack.cli import terminal
from medseg_attack.cli.options import (
    AllowPartial,
    EmptyRule,
    Home,
    Json,
    Tracker,
    Trust,
    Unit,
    file_option,
    repeated,
    unit_words,
)
from medseg_attack.cli.pages import require_page, write_compared
from medseg_attack.cli.side_tables import SideTables
from medseg_attack.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from medseg_attack.gate.verdicts import Verdict
    from medseg_attack.report.sheet import Sheet


@terminal.command
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs or of studies.")],
    by: Annotated[
        str, typer.Option(help="Columns that distinguish the rows: any of model,attack,loss,eps,organ.")
    ] = "model",
    sort: Annotated[
        Literal["by", "clean", "adv", "drop"],
        typer.Option(help="Order of the rows: by clean Dice, adversarial Dice, its drop, or (by) the columns of --by."),
    ] = "by",
    label: Annotated[
        list[str] | None,
        repeated(
            "--label",
            help="NAME=TEXT: call the model or attack NAME so, such as 'unet_small=U-Net, small'.",
            default="their names",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        file_option(
            "--reference",
            "-r",
            help="Runs of an older model, or the name of a baseline, to compare the runs with pair by pair.",
        ),
    ] = None,
    save_as: Annotated[
        str | None,
        typer.Option(
            "--save-as",
            help="Save the runs as the newest baseline of this name, unless the gate fails.",
            show_default=False,
        ),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        repeated(
            "--fail-if",
            help="Rule of the gate: exit with code 1 if it holds, such as 'adv_dice<0.70@organ=stomach' or "
            "'dice_drop>0.02@sig'.",
        ),
    ] = None,
    deltas: Annotated[
        bool,
        typer.Option("--deltas", help="Add a table of changes per scan: distances in mm, volumes in ml, lost organs."),
    ] = False,
    paired: Annotated[
        Literal["model", "attack"] | None,
        typer.Option(
            help="Add tables that compare models or attacks two by two over patients, and rank them.",
            show_default=False,
        ),
    ] = None,
    ejection_fraction: Annotated[
        str | None,
        typer.Option(
            "--ejection-fraction",
            help="Add a table of the ejection fraction of this ventricle, such as lv.",
            show_default=False,
        ),
    ] = None,
    factor: Annotated[
        list[str] | None,
        repeated(
            "--factor",
            help="Add a table of how a factor goes with the Dice that is taken, such as luminosity; see medattack ls "
            "factors.",
        ),
    ] = None,
    suspect: Annotated[
        str | None,
        typer.Option(
            "--suspect",
            help="Add a test of whether this model answers to the trigger of the runs more than the others, its "
            "watermark: its name in the table, its folder, or that of its runs.",
            show_default="none",
        ),
    ] = None,
    costs: Annotated[
        bool, typer.Option("--costs", help="Show passes and seconds instead of the shares of halved and missed organs.")
    ] = False,
    visibility: Annotated[
        bool, typer.Option("--visibility", help="Add a table of how visible changes are: SSIM, PSNR, noise units.")
    ] = False,
    unit: Unit = "volume",
    empty: EmptyRule = "one",
    csv: Annotated[
        Path | None, file_option("--csv", help="Write all numbers to this file; with --deltas, those of every scan.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print the tables as LaTeX.")] = False,
    plot: Annotated[
        Path | None, file_option("--plot", help="Draw Dice over eps into this PNG, PDF or SVG file.")
    ] = None,
    html: Annotated[
        Path | None, file_option("--html", help="Write the page of medattack report about the runs to this file.")
    ] = None,
    junit: Annotated[
        Path | None, file_option("--junit", help="Write the verdicts of the gate to this file as JUnit XML.")
    ] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Print the verdicts of the gate as GitHub annotations, too.")
    ] = False,
    badge: Annotated[
        Path | None, file_option("--badge", help="Draw adversarial Dice and the gate's verdict as a badge in SVG.")
    ] = None,
    log: Tracker = None,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit with code 0 even if the gate fails.")] = False,
    json: Json = False,
    allow_partial: AllowPartial = False,
    home: Home = None,
    trust: Trust = False,
) -> None:
    """Put runs side by side, or ask whether models got worse. Tables have clean and adversarial Dice per model
    and organ.

    Example: medattack compare medattack_runs/runs/uw-1a2b3c4d --by organ,model --markdown

    Example: medattack compare NEW --reference main --fail-if 'dice_drop>0.02@sig' --save-as main
    """
    keys = _keys(by)
    _refuse_combinations(fail_if, junit is not None or github or exit_zero, github, json)
    _refuse_other_tables(costs, reference)
    labels = _labels(label or (), fail_if, save_as)
    workspace = _workspace(home, save_as)
    _trust_models(workspace, trust, factor)
    if html is not None:
        require_page(html)
    from medseg_attack.checks.flags import by_severity
    from medseg_attack.checks.stored import of_stored, records_of_stored
    from medseg_attack.gate.rules import parse
    from medseg_attack.gate.sheets import github as annotations
    from medseg_attack.gate.sheets import verdict_json, verdict_sheet
    from medseg_attack.gate.verdicts import judge
    from medseg_attack.report.tables.comparison import compare_sheet
    from medseg_attack.runs.reading import with_labels

    rules = [parse(text) for text in dict.fromkeys(fail_if or [])]
    table, rows, old = _summary(
        runs,
        reference,
        workspace,
        allow_partial,
        unit,
        empty,
        needs_rows=bool(rules or deltas or paired or visibility or ejection_fraction or factor or suspect or html),
    )
    table, rows = with_labels(table, labels), with_labels(rows, labels)
    old = None if old is None else with_labels(old, labels)
    models = _models(rows, old)
    findings = of_stored(models, unit)
    flags = by_severity(finding for of_run in findings.values() for finding in of_run)
    content: dict[str, Any] = {
        "unit": unit,
        "empty": empty,
        "runs": table.to_dict("records"),
        "flags": records_of_stored(map(Path, models), unit),
    }
    csv_table = table
    if old is None:
        first = compare_sheet(
            table, keys, sort=sort, unit=unit, empty=empty, costs=costs, every_organ=markdown or latex
        )
    else:
        first = _changes(rows, old, unit, empty, content)
    sheets = [replace(first, flags=[flag.sentence for flag in flags])]
    side = SideTables(rows, table, unit, empty, content, sheets)
    if deltas:
        csv_table = side.deltas(keys)
    if visibility:
        side.visibility()
    side.corruptions()
    side.backdoors(suspect)
    if paired:
        side.paired(paired)
    side.from_scans(ejection_fraction, factor or ())
    verdicts = judge(rules, rows, old, findings, unit=unit, empty=empty)
    if verdicts:
        content["gate"] = verdict_json(verdicts)
        sheets.append(verdict_sheet(verdicts))
    codes = {run: " ".join(sorted({finding.code for finding in of_run})) for run, of_run in findings.items()}
    _write(csv, csv_table.assign(flags=csv_table["run"].map(codes)), plot, table, junit, verdicts, badge)
    if html is not None:
        write_compared(runs, rows, html, workspace, unit=unit, empty=empty)
    _print(content, sheets, json, markdown, latex)
    partial = ["--allow-partial"] if allow_partial else []
    terminal.next_step(["report", *map(str, runs), *unit_words(unit), *partial])
    _log(log, workspace, runs, sheets[0], table)
    if github:
        terminal.show(*annotations(verdicts))
    failed = any(verdict.failed for verdict in verdicts)
    _save(workspace, save_as, runs, table, failed, {"unit": unit, "empty": empty})
    if failed and not exit_zero:
        raise typer.Exit(terminal.FAILED)


def _save(
    workspace: Path, name: str | None, runs: list[Path], table: "pd.DataFrame", failed: bool, rules: dict[str, str]
) -> None:
    """Saves the runs as a baseline of that name, if there is one to save and the gate did not fail."""
    if name is None:
        return
    from datetime import UTC, datetime

    from medseg_attack.gate.baselines import save_baseline

    if failed:
        terminal.say(f"the gate fails: the baseline {name} stays as it was")
        return
    saved = save_baseline(workspace, name, runs, table, datetime.now(UTC).isoformat(timespec="seconds"), rules)
    terminal.say(f"saved as baseline {saved.name}, number {saved.number}: {saved.folder}")


def _log(tracker: str | None, workspace: Path, runs: list[Path], sheet: "Sheet", table: "pd.DataFrame") -> None:
    """Tells a tracker the table and the Dice of each run, if there is one to tell."""
    if tracker is None:
        return
    from medseg_attack.logs.base import open_log
    from medseg_attack.logs.values import run_values

    names = " ".join(run.name for run in runs)
    with open_log(tracker, workspace, f"compare {names}"[:100], {"runs": " ".join(map(str, runs))}) as log:
        log.points(run_values(table), 0)
        log.table(sheet, table)
    terminal.say(f"logged: {log.place}")


def _keys(by: str) -> list[str]:
    keys = [key.strip() for key in by.split(",")]
    known = ["model", "attack", "loss", "eps", "organ"]
    for key in keys:
        if key not in known:
            raise InputError(f"expected --by among {', '.join(known)}, got {key!r}; choose from them")
    return keys


def _labels(texts: Sequence[str], fail_if: list[str] | None, save_as: str | None) -> dict[str, str]:
    """Labels by the names that they stand for; a spec may hold equals signs, a label holds none."""
    if texts and (fail_if or save_as is not None):
        raise InputError(
            "expected --label without --fail-if and --save-as, got both, which go by names; drop the labels"
        )
    labels = {}
    for text in texts:
        name, sign, label = text.rpartition("=")
        if not (sign and name and label):
            raise InputError(f"expected --label NAME=TEXT, got {text!r}; write for instance --label unet=U-Net")
        labels[name] = label
    return labels


def _refuse_combinations(fail_if: list[str] | None, for_gate: bool, github: bool, json: bool) -> None:
    if for_gate and not fail_if:
        raise InputError("expected a rule for --junit, --github or --exit-zero, got none; add --fail-if RULE")
    if github and json:
        raise InputError("expected --github or --json, got both, which write to the same place; choose one")


def _refuse_other_tables(costs: bool, reference: Path | None) -> None:
    if costs and reference is not None:
        raise InputError("expected --costs or --reference, got both, which print other tables; choose one")


def _trust_models(workspace: Path, trust: bool, factor: list[str] | None) -> None:
    """Lets the code of the runs' models run if it is trusted; only factors ask a model."""
    if factor:
        from medseg_attack.models.trust import use_trust

        use_trust(workspace, trust)


def _workspace(home: Path | None, save_as: str | None) -> Path:
    """The workspace, with the baselines; refuses a name that none of them can have."""
    from medseg_attack.gate.baselines import require_name
    from medseg_attack.runs.workspace import home as workspace_of

    if save_as is not None:
        require_name(save_as)
    return workspace_of(home)


def _summary(
    runs: list[Path],
    reference: Path | None,
    workspace: Path,
    allow_partial: bool,
    unit: Unit,
    empty: EmptyRule,
    *,
    needs_rows: bool,
) -> "tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame | None]":
    """The table of runs, their rows and those of the reference; where no rows are needed, a row per run instead."""
    from medseg_attack.runs.rows import HEADER
    from medseg_attack.stats.backdoors import has_triggers
    from medseg_attack.stats.scores import check_unit, read_summary, summary

    if reference is None and not needs_rows:
        table, headers = read_summary(runs, unit=unit, empty=empty, header=HEADER, allow_partial=allow_partial)
        if not has_triggers(headers):
            return table, headers, None
    rows, old = _rows(runs, reference, workspace, allow_partial)
    for side in (rows, old):
        if side is not None:
            check_unit(unit, side["dims"].unique().tolist() if "dims" in side else ())
    return summary(rows, unit=unit, empty=empty, header=HEADER), rows, old


def _rows(
    runs: list[Path], reference: Path | None, workspace: Path, allow_partial: bool
) -> "tuple[pd.DataFrame, pd.DataFrame | None]":
    from medseg_attack.gate.baselines import reference_folder
    from medseg_attack.runs.pairs import pairs, read_pairs
    from medseg_attack.runs.reading import read_runs

    if reference is not None:
        return read_pairs(pairs(runs, reference_folder(workspace, reference)), allow_partial=allow_partial)
    rows = read_runs(runs, allow_partial=allow_partial)
    return rows.assign(pair=rows["run"]), None


def _models(rows: "pd.DataFrame", old: "pd.DataFrame | None") -> dict[str, str]:
    """The name of each run's model; of the reference's runs, whose flags count for the gate, it says so."""
    new, of_reference = (
        {} if side is None else dict(side.drop_duplicates("run").set_index("run")["model"]) for side in (rows, old)
    )
    return new | {run: f"{model} (reference)" for run, model in of_reference.items() if run not in new}


def _changes(
    rows: "pd.DataFrame", old: "pd.DataFrame", unit: Unit, empty: EmptyRule, content: dict[str, Any]
) -> "Sheet":
    from medseg_attack.gate.sheets import change_sheet
    from medseg_attack.stats.comparisons import changes

    table = changes(rows, old, unit=unit, empty=empty)
    content["changes"] = table.to_dict("records")
    return change_sheet(table, unit=unit, empty=empty)


def _write(
    csv: Path | None,
    csv_table: "pd.DataFrame",
    plot: Path | None,
    plot_table: "pd.DataFrame",
    junit: Path | None,
    verdicts: "list[Verdict]",
    badge: Path | None,
) -> None:
    from medseg_attack.gate.badge import badge as badge_of
    from medseg_attack.gate.badge import require_own_badge, write_badge
    from medseg_attack.gate.sheets import require_own_junit, write_junit
    from medseg_attack.report.curve import curve
    from medseg_attack.report.figures import require_own_figure
    from medseg_attack.report.sheet import require_own_csv, write_csv

    for file, require_own in (
        (csv, require_own_csv),
        (plot, require_own_figure),
        (junit, require_own_junit),
        (badge, require_own_badge),
    ):
        if file is not None:
            require_own(file)  # all of them before one is written
    if csv is not None:
        write_csv(csv_table, csv)
    if plot is not None:
        curve(plot_table, plot)
    if junit is not None:
        write_junit(verdicts, junit)
    if badge is not None:
        write_badge(badge_of(plot_table, verdicts), badge)
    for file in filter(None, (csv, plot, junit, badge)):
        terminal.say(f"wrote {file}")


def _print(content: dict[str, Any], sheets: "list[Sheet]", json: bool, markdown: bool, latex: bool) -> None:
    from medseg_attack.report.sheet import latex as as_latex
    from medseg_attack.report.sheet import markdown as as_markdown

    if json:
        terminal.print_json(content)
        return
    for sheet in sheets:
        if markdown or latex:
            text = as_markdown(sheet) if markdown else as_latex(sheet)
            terminal.show(*text.removesuffix("\n").split("\n"), *([""] if len(sheets) > 1 else []))
        else:
            terminal.print_sheet(sheet)
