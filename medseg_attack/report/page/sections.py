"""Sections on what stands beside attacks: defences, detectors and certificates, as their commands print them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medseg_attack import registry
from medseg_attack.errors import InputError, plural
from medseg_attack.metrics.empty import Empty
from medseg_attack.report.certificates import certificate_sheet, certificate_summary
from medseg_attack.report.defences import LEVELS, MOST_MODELS, conclusion, trial_rows, trial_sheets, trial_table, trials
from medseg_attack.report.detectors import detector_sheet, goal_sheet, has_goals
from medseg_attack.report.sheet import Sheet
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.reading import find_runs
from medseg_attack.runs.stored_files import (
    CONFIG_FILE,
    DETECTION_ENDING,
    HEADER_FILE,
    StoredCertificate,
    StoredDetection,
)
from medseg_attack.stats.alarms import main_rate, rates
from medseg_attack.stats.scores import MEAN, Unit
from medseg_attack.storage.json_files import read_json


@dataclass(frozen=True)
class Result:
    """A table of `defend`, `detect` or `certify`, and what follows from it.

    Attributes:
        about: the models that it is about, as tables call them.
        sheet: the table; further ones, an organ each or by goal, stand in `details`.
        verdict: what follows, in sentences.
        chart: the name of its chart in `page.charts`.
        points: what the chart shows: the numbers of the table, unrounded.
        details_name: what the further tables are opened by.
    """

    about: Sequence[str]
    sheet: Sheet
    verdict: Sequence[str]
    chart: str
    points: Sequence[Mapping[str, Any]]
    details: Sequence[Sheet] = ()
    details_name: str = "Organ by organ"


@dataclass(frozen=True)
class Results:
    """The results beside the runs of a page, by the command that made them."""

    defences: Sequence[Result] = ()
    detectors: Sequence[Result] = ()
    certificates: Sequence[Result] = ()


def results(paths: Iterable[Path], *, unit: Unit, empty: Empty) -> Results:
    """The results of `defend`, `detect` and `certify` at or below some paths.

    Raises:
        InputError: one of them is damaged.
    """
    folders = list(dict.fromkeys(paths))
    return Results(
        [each for path in folders for folder in trials(path) for each in _defences(folder, unit, empty)],
        [_detector(file) for path in folders for file in sorted(path.rglob(f"*{DETECTION_ENDING}"))],
        [_certificate(folder) for path in folders for folder in certificate_folders(path)],
    )


def attacked_folders(paths: Sequence[Path]) -> list[Path]:
    """The runs of attacks at or below some paths, of which results of `detect` and `certify` are none.

    Raises:
        InputError: there is none.
    """
    with_runs = []
    for path in paths:
        others = certificate_folders(path)
        is_beside = bool(others) or any(path.rglob(f"*{DETECTION_ENDING}"))
        if not is_beside or any(file.parent not in others for file in path.rglob(CONFIG_FILE)):
            with_runs.append(path)
    runs = list(find_runs(with_runs))
    if not runs:
        raise InputError(
            f"expected runs of attacks beside what defend, detect and certify wrote, got none in {paths[0]}; name "
            "those runs, too"
        )
    return runs


def certificate_folders(path: Path) -> list[Path]:
    """The folders of certificates at or below a path, sorted."""
    files = sorted(path.rglob(CONFIG_FILE))
    return [file.parent for file in files if "certificate" in read_json(file)]


def _defences(folder: Path, unit: Unit, empty: Empty) -> Iterator[Result]:
    table = trial_table(folder, trial_rows(folder), unit=unit, empty=empty)
    mean, *organs = trial_sheets(table, unit=unit, empty=empty)
    defended = table.loc[~table["is_twin"], "model"]
    about = list(dict.fromkeys(map(str, defended)))
    yield Result(about, mean, conclusion(table), "worth", list(_levels(table)), organs)


def _levels(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The mean Dice that each kind of attack leaves of the twin and of the first defended models."""
    of_mean = table[table["organ"] == MEAN]
    models = pd.concat([of_mean[of_mean["is_twin"]], of_mean[~of_mean["is_twin"]].head(MOST_MODELS)])
    for n, (_, row) in enumerate(models.iterrows()):
        for kind, words in LEVELS.items():
            numbers = {"dice": row[kind], "low": row[f"{kind}_low"], "high": row[f"{kind}_high"]}
            yield {"model": str(row["model"]), "mark": str(n), "level": words} | numbers


def _detector(file: Path) -> Result:
    content = StoredDetection.model_validate(read_json(file, StoredDetection))
    rows = [row.model_dump() for row in content.rows]
    n = content.calibration_patients
    lacking = next(_lacking(rows, n), None)
    if lacking:
        raise InputError(
            f"expected the table of a detector in {file}, got one without {lacking}; run medattack detect again"
        )
    table = pd.DataFrame([{name: _number(value) for name, value in row.items()} for row in rows])
    title = f"{content.detector} of {content.model} on {content.data}"
    sheet = detector_sheet(table, title=title, n_calibration=n, partial=content.partial)
    goals = [goal_sheet(table, title=f"{title}, by goal", n_calibration=n)] if has_goals(table) else []
    points = list(_alarms(table, main_rate(n)))
    return Result([content.model], sheet, [content.verdict], "alarms", points, goals, "By goal")


def _lacking(rows: Sequence[Mapping[str, Any]], n: int) -> Iterator[str]:
    """The names of what the rows of a detector with n calibration patients lack."""
    clean = next((row for row in rows if row["kind"] == "clean"), None)
    if clean is None:
        yield "clean images"
        return
    for rate in rates(n):
        if f"alarms_{rate:.2g}" not in clean:
            yield f"alarms_{rate:.2g}"
    main = f"alarms_{main_rate(n):.2g}"
    if clean.get(main) is not None:
        yield from (end for end in (f"{main}_low", f"{main}_high") if clean.get(end) is None)


def _alarms(table: pd.DataFrame, rate: float) -> Iterator[dict[str, Any]]:
    """The share of patients with an alarm at a rate of false ones, on clean and on attacked images."""
    for _, row in table[table[f"alarms_{rate:.2g}"].notna()].iterrows():
        name = " ".join(filter(None, [str(row["attack"]), str(row["eps"])]))
        numbers = {"share": row[f"alarms_{rate:.2g}"], "auroc": row.get("auroc", math.nan)}
        yield {"name": name, "kind": str(row["kind"])} | numbers


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def _certificate(folder: Path) -> Result:
    if not (folder / HEADER_FILE).is_file():
        raise InputError(
            f"expected finished certificates in {folder}, got some without {HEADER_FILE}; run medattack certify again, "
            "it goes on where it stopped"
        )
    header = read_json(folder / HEADER_FILE, StoredCertificate)
    stored = RunFolder(folder)
    try:
        certificate = registry.build(str(stored.config["certificate"]), "certificate")
    except InputError as error:
        raise InputError(
            f"expected a certificate in {folder / CONFIG_FILE}, got none that can be built ({error}); run medattack "
            "certify again"
        ) from error
    rows = stored.rows()
    title = f"{registry.spec(certificate)} of {header['model']} on {header['data']}"
    about: Any = {name: header.get(name, "") for name in ("unit", "prompt")} | {"partial": header.get("partial", False)}
    sheet = certificate_sheet(rows, certificate, title=title, **about)
    n = rows.loc[rows["checked"], "volume"].nunique()
    checked = f"An attack within each radius was run against the bounds of {plural(n, 'scan')}"
    refuted = [f"{flag['code']} {flag['title']}: {flag['todo']}." for flag in header.get("flags", ())]
    held = "" if refuted else "; it refuted none"
    verdict = f"{checked}{held}." if n else "No attack was run against the bounds."
    points = list(_bounds(rows, certificate.quantity))
    return Result([header["model"]], sheet, [*refuted, verdict], "certified", points)


def _bounds(rows: pd.DataFrame, quantity: str) -> Iterator[dict[str, Any]]:
    """Certified bounds of each class within each radius; a Dice is bounded from below, other quantities on both sides.

    The band is the interval over patients of the mean Dice, else what lies between both bounds.
    """
    table = certificate_summary(rows, quantity)
    classes = [str(cls) for cls in rows["cls"].unique()]
    for _, row in table.iterrows():
        for organ in [*([MEAN] if quantity == "Dice" else []), *classes]:
            ends = ("ci_low", "ci_high") if organ == MEAN else (f"{organ}_low", f"{organ}_high")
            bottom, top = (row[end] for end in ends) if quantity != "Dice" or organ == MEAN else (math.nan, math.nan)
            for end in ("low",) if quantity == "Dice" else ("low", "high"):
                facts = {"organ": organ, "radius": row["radius"], "end": end, "bound": row[f"{organ}_{end}"]}
                yield facts | {"bottom": bottom, "top": top}
