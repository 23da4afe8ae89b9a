"""`medattack report`: runs as a page that people look at, one file that asks no network for anything."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg_attack.cli import terminal
from medseg_attack.cli.options import Device, EmptyRule, Home, ShowProgress, Trust, Unit
from medseg_attack.errors import InputError, plural

if TYPE_CHECKING:
    from medseg_attack.report.card.content import Subject
    from medseg_attack.report.page.content import Tables
    from medseg_attack.report.page.pictures import Picture


@terminal.command
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs or of studies; those of defend, detect and certify get a section each."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the page.")] = Path("report"),
    card: Annotated[
        bool,
        typer.Option("--card", help="Write the robustness card of each model, Markdown and HTML, instead of the page."),
    ] = False,
    entry: Annotated[
        bool,
        typer.Option(
            "--entry", help="Write an entry of a leaderboard for each model and threat into --out, instead of the page."
        ),
    ] = False,
    worst: Annotated[int, typer.Option("--worst", min=0, help="Scans to show in pictures, the worst first.")] = 12,
    unit: Unit = "volume",
    empty: EmptyRule = "one",
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Accept runs of part of the cases (--limit).")
    ] = False,
    device: Device = "auto",
    home: Home = None,
    trust: Trust = False,
    progress: ShowProgress = True,
) -> None:
    """Write a page about runs, or a card. The page is one HTML file with a table to sort, curves, every patient,
    pictures of the worst cases and the flags; the card says in two pages what was tried, what came of it, and what
    was not tried.

    The pictures need the data and the models of the runs. Where a run kept no images, its attack is run again on them.

    Example: medattack report medattack_runs/runs/uw-1a2b3c4d --out report

    Example: medattack report medattack_runs/runs/uw-1a2b3c4d --entry --out leaderboard
    """
    from medseg_attack.report.page.rendering import NAME, Report, write_page
    from medseg_attack.report.page.templates import require_own_page, require_packages

    require_packages()
    if not (card or entry):
        require_own_page(out / NAME)
    from medseg_attack.checks.flags_page import explanations
    from medseg_attack.checks.stored import records_of_stored
    from medseg_attack.models.trust import use_trust
    from medseg_attack.report.card.content import subjects
    from medseg_attack.report.defences import unfinished_trials
    from medseg_attack.report.page.content import tables
    from medseg_attack.report.page.method import studies
    from medseg_attack.report.page.sections import attacked_folders, results
    from medseg_attack.runs.reading import read_runs
    from medseg_attack.runs.workspace import home as workspace_of
    from medseg_attack.stats.scores import check_unit

    rows = read_runs(attacked_folders(runs), allow_partial=allow_partial)
    check_unit(unit, rows["dims"].unique().tolist() if "dims" in rows else ())
    folders = [Path(run) for run in rows["run"].unique()]
    of_page = tables(rows, unit=unit, empty=empty)
    beside = results(runs, unit=unit, empty=empty)
    for trial in (trial for path in runs for trial in unfinished_trials(path)):
        terminal.say(f"note: no section on the trial in {trial}; run its medattack defend again, which completes it")
    if card or entry:
        _write_records(list(subjects(of_page, beside)), out, card, entry)
        return
    use_trust(workspace_of(home), trust)
    pictures, missing_pictures, intensity_unit = _pictures(of_page, worst, device, progress)
    page = Report(
        of_page,
        flags=records_of_stored(folders),
        studies=list(studies(folders)),
        explanations={code: flag.explanation for code, flag in explanations().items()},
        pictures=pictures,
        missing_pictures=missing_pictures,
        intensity_unit=intensity_unit,
        results=beside,
    )
    file = write_page(page, out)
    if missing_pictures and worst:
        terminal.say(f"note: {missing_pictures}")
    terminal.say(f"page: {file}")


def _write_records(all_subjects: "list[Subject]", out: Path, card: bool, entry: bool) -> None:
    """Writes the cards or the entries of some models, or both."""
    from medseg_attack.report.card.content import cards
    from medseg_attack.report.card.rendering import write_cards
    from medseg_attack.report.leaderboard.entries import Entry, entries, write_entry

    if card:
        for file in write_cards(cards(all_subjects), out):
            terminal.say(f"card: {file}")
    for content in (each for subject in all_subjects for each in entries(subject)) if entry else ():
        terminal.say(f"entry: {write_entry(content, out)}")
        if obstacles := Entry.model_validate(content).obstacles:
            terminal.say(f"note: it will have no rank: {'; '.join(obstacles)}")


def _pictures(of_page: "Tables", n: int, device: str, show: bool) -> "tuple[list[Picture], str, str]":
    """Pictures of the worst scans, a sentence on why some are missing, and the unit of the scans' intensities."""
    from medseg_attack.evaluation.pictures.attacked_scans import attacked_scans
    from medseg_attack.report.page.pictures import BYTES, picture, worst_scans
    from medseg_attack.report.tables import organs
    from medseg_attack.runtime import pick_device

    scans = worst_scans(of_page.rows, of_page.summary, n, empty=of_page.empty)
    if not scans:
        return [], "No pictures were asked for." if n == 0 else "No attack was run that could be shown.", ""
    by_run: dict[str, list[str]] = {}
    for worst in scans:
        by_run.setdefault(worst.run, []).append(worst.scan)
    pictures: dict[str, Picture] = {}
    units, reasons = set(), []
    with terminal.progress("pictures", len(scans), show=show) as advance:
        for run, of_run in by_run.items():
            classes = organs(of_page.summary[of_page.summary["run"] == run].dropna(axis=1, how="all"))
            try:
                for scan in attacked_scans(Path(run), of_run, pick_device(device)):
                    (worst,) = [each for each in scans if each.scan == scan.scan]
                    pictures[scan.scan] = picture(worst, scan, classes, BYTES // len(scans))
                    units.add(scan.unit)
                    advance()
            except InputError as error:  # the data or the model may be elsewhere by now
                reasons.append(str(error))
    shown = [pictures[worst.scan] for worst in scans if worst.scan in pictures]
    missing = (
        f"{plural(len(scans) - len(shown), 'scan')} of {len(scans)} not pictured: {'; '.join(dict.fromkeys(reasons))}"
    )
    return shown, missing if reasons else "", units.pop() if len(units) == 1 else ""
