"""`medattack report`: runs as a page that people look at, one file that asks no network for anything."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg_attack.cli import terminal
from medseg_attack.cli.options import AllowPartial, Device, EmptyRule, Home, ShowProgress, Trust, Unit
from medseg_attack.cli.pages import WORST, require_page, say_unfinished_trials, write_report

if TYPE_CHECKING:
    from medseg_attack.report.card.content import Subject


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
    worst: Annotated[int, typer.Option("--worst", min=0, help="Scans to show in pictures, the worst first.")] = WORST,
    unit: Unit = "volume",
    empty: EmptyRule = "one",
    allow_partial: AllowPartial = False,
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
    from medseg_attack.report.page.rendering import NAME
    from medseg_attack.report.page.templates import require_packages

    require_packages()
    if not (card or entry):
        require_page(out / NAME)
    from medseg_attack.models.trust import use_trust
    from medseg_attack.report.card.content import subjects
    from medseg_attack.report.page.content import tables
    from medseg_attack.report.page.sections import attacked_folders, results
    from medseg_attack.runs.reading import read_runs
    from medseg_attack.runs.workspace import home as workspace_of
    from medseg_attack.stats.scores import check_unit

    rows = read_runs(attacked_folders(runs), allow_partial=allow_partial)
    check_unit(unit, rows["dims"].unique().tolist() if "dims" in rows else ())
    of_page = tables(rows, unit=unit, empty=empty)
    beside = results(runs, unit=unit, empty=empty)
    say_unfinished_trials(runs)
    if card or entry:
        _write_records(list(subjects(of_page, beside)), out, card, entry)
        return
    workspace = workspace_of(home)
    use_trust(workspace, trust)
    write_report(of_page, beside, out / NAME, workspace, worst=worst, device=device, progress=progress)


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
