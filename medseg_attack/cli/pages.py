"""The page about runs, which `report` and `compare --html` write."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg_attack.cli import terminal
from medseg_attack.cli.options import EmptyRule, Unit
from medseg_attack.cli.progress import progress_bar
from medseg_attack.errors import InputError, plural

if TYPE_CHECKING:
    import pandas as pd

    from medseg_attack.report.page.content import Tables
    from medseg_attack.report.page.pictures import Picture
    from medseg_attack.report.page.sections import Results

WORST = 12  # scans in pictures


def say_unfinished_trials(paths: Iterable[Path]) -> None:
    """Says which trials of defences have no section."""
    from medseg_attack.report.defences import unfinished_trials

    for trial in (trial for path in paths for trial in unfinished_trials(path)):
        terminal.say(f"note: no section on the trial in {trial}; run its medattack defend again, which completes it")


def write_report(
    of_page: "Tables",
    beside: "Results",
    file: Path,
    workspace: Path,
    *,
    worst: int = WORST,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Writes the page about some runs into a file, and says where it is.

    Args:
        beside: results of defences, detectors and certificates.
        workspace: folders in it are named from there on the page.
        worst: number of scans in pictures.

    Raises:
        InputError: the file is there and no page of this package, or a run is damaged.
    """
    from medseg_attack.checks.explanations import explanations
    from medseg_attack.checks.stored import records_of_stored
    from medseg_attack.report.page.method import studies
    from medseg_attack.report.page.rendering import Report, write_page

    ids = {Path(str(run)): run_id for run, run_id in of_page.rows.groupby("run", sort=False)["run_id"].first().items()}
    pictures, missing_pictures, intensity_unit = _pictures(of_page, worst, device, progress)
    page = Report(
        of_page,
        flags=records_of_stored(ids, of_page.unit),
        studies=list(studies(ids, workspace)),
        explanations={code: flag.explanation for code, flag in explanations().items()},
        pictures=pictures,
        missing_pictures=_without_parents(missing_pictures, {run.parent.parent.parent for run in ids}),
        intensity_unit=intensity_unit,
        results=beside,
    )
    write_page(page, file)
    if missing_pictures and worst:
        terminal.say(f"note: {missing_pictures}")
    terminal.say(f"page: {file}")


def _without_parents(text: str, folders: Iterable[Path]) -> str:
    """Text in which paths do not begin with these folders or those above them, which may have spaces in their names."""
    parents = {f"{parent}/" for folder in folders for parent in (folder, *folder.parents) if parent.name}
    for parent in sorted(parents, key=len, reverse=True):
        text = text.replace(parent, "")
    return text


def require_page(file: Path) -> None:
    """Refuses, before any work, a page that cannot be written.

    Raises:
        InputError: a package is missing, or the file is there and no page of this package.
    """
    from medseg_attack.report.page.templates import require_own_page, require_packages

    require_packages()
    require_own_page(file)


def write_compared(
    runs: Sequence[Path], rows: "pd.DataFrame", file: Path, workspace: Path, *, unit: Unit, empty: EmptyRule
) -> None:
    """Writes the page about runs that are compared; for its pictures, no code runs that was not trusted before."""
    from medseg_attack.models.trust import use_trust
    from medseg_attack.report.page.content import tables
    from medseg_attack.report.page.sections import results

    use_trust(workspace, False)
    say_unfinished_trials(runs)
    write_report(tables(rows, unit=unit, empty=empty), results(runs, unit=unit, empty=empty), file, workspace)


def _pictures(of_page: "Tables", n: int, device: str, show: bool) -> "tuple[list[Picture], str, str]":
    """Pictures of the worst scans, a sentence on why some are missing, and the unit of the scans' intensities."""
    from medseg_attack.report.page.pictures import BYTES, picture, worst_scans
    from medseg_attack.report.tables.summaries import organs

    scans = worst_scans(of_page.rows, of_page.summary, n, empty=of_page.empty)
    if not scans:
        return [], "No pictures were asked for." if n == 0 else "No attack was run that could be shown.", ""
    from medseg_attack.evaluation.pictures.attacked_scans import attacked_scans
    from medseg_attack.runtime import pick_device

    by_run: dict[str, list[str]] = {}
    for worst in scans:
        by_run.setdefault(worst.run, []).append(worst.scan)
    pictures: dict[str, Picture] = {}
    units, reasons = set(), []
    with progress_bar("pictures", len(scans), show=show) as advance:
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
