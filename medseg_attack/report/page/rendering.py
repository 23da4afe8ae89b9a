"""A page as one HTML file: scripts and pictures inside, and a policy that forbids the network."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg_attack import __version__
from medseg_attack.checks.stored import codes
from medseg_attack.errors import listed
from medseg_attack.escaping import without_absolute_paths
from medseg_attack.report.colours import NEUTRAL, organ_colours
from medseg_attack.report.page import content
from medseg_attack.report.page.method import StudyFacts
from medseg_attack.report.page.pictures import Picture
from medseg_attack.report.page.sections import Result, Results
from medseg_attack.report.page.templates import (
    FOLDER,
    POLICY,
    css,
    environment,
    require_own_page,
    require_packages,
    shown,
)
from medseg_attack.report.tables.summaries import budget, organs
from medseg_attack.stats.scores import MEAN
from medseg_attack.storage.files import whole

NAME = "index.html"
MARKS = "○●■▲"  # of the twin and of defended models, as their chart has them
CHART_WORDS = {
    "worth": "The mean Dice over organs that each kind of attack leaves, with its 95 % interval.",
    "alarms": "The share of patients with an alarm. Orange: attacks. Grey: clean images, noise.",
    "certified": "What is certified within each radius. The band: the 95 % interval over patients of the mean Dice, or "
    "what lies between both bounds.",
}
VIEWS = (("clean", "untouched"), ("attacked", "under attack"), ("difference", "difference"))


@dataclass(frozen=True)
class Report:
    """All that a page is made of.

    Attributes:
        flags: as `compare --json` has them, from `checks.stored.records_of_stored`.
        explanations: what each flag means, by its code.
        pictures: of the worst cases.
        missing_pictures: why some are missing, in a sentence.
        intensity_unit: of the scans, such as "HU"; "" where it is not known.
        results: of defences, detectors and certificates.
    """

    tables: content.Tables
    flags: Sequence[Mapping[str, Any]]
    studies: Sequence[StudyFacts]
    explanations: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    missing_pictures: str = ""
    intensity_unit: str = ""
    results: Results = field(default_factory=Results)


def write_page(report: Report, file: Path) -> None:
    """Writes a page into a file.

    Raises:
        InputError: a package is missing, or the file is there and no page of this package.
    """
    require_packages()
    require_own_page(file)
    text = html(report)
    with whole(file) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def html(report: Report) -> str:
    """The text of a page."""
    from markupsafe import Markup

    from medseg_attack.report.page.charts import DASHES, charts, library

    table = report.tables.summary
    names = {MEAN: "mean over organs"} | {organ: organ for organ in organs(table)}
    colours = organ_colours(organs(table))
    models, attacks = (list(dict.fromkeys(map(str, table[column]))) for column in ("model", "attack"))
    overall = content.overall_columns(table)
    panels, sections = content.panels(table), _sections(report.results)
    data = {
        "organs": list(names),
        "names": names,
        "models": models,
        "attacks": attacks,
        "overall": list(overall),
        "runs": [{"attack": str(attack)} for attack in table["attack"]],
        "panels": [{"axis": panel.axis, "points": panel.points} for panel in panels],
        "each": content.patients(report.tables),
        "pictures": [
            {"first": picture.first, "slices": [vars(each) for each in picture.slices]} for picture in report.pictures
        ],
        "results": [{"points": result.points} for *_, each in sections for result in each],
        "charts": charts(colours, list(map(shown, models))),
    }
    scripts = [_script(library()), _script((FOLDER / "page.js").read_text(encoding="utf-8"))]
    return (
        environment()
        .get_template("page/page.html")
        .render(
            version=__version__,
            policy=POLICY.format(" ".join(map(_hash, scripts))),
            css=Markup(css()),
            scripts=[Markup(script) for script in scripts],
            data=Markup(_json(data)),
            title=_title(report),
            answer=content.answer(report.tables, report.intensity_unit),
            doubts=_doubts(report.flags),
            explanation=content.explanation(report.tables),
            organs=list(names),
            organ_names=names,
            colours=colours | {MEAN: NEUTRAL},
            models=models,
            attacks=attacks,
            overall=overall,
            heads=_heads(overall),
            lines=list(content.lines(table, {run: codes(Path(run), report.tables.unit) for run in table["run"]})),
            panels=panels,
            runs=_run_names(report),
            worst=_worst(report),
            unit=report.tables.unit,
            views=VIEWS,
            dashes=DASHES,
            pictures=report.pictures,
            pictures_again=not all(picture.is_stored for picture in report.pictures),
            missing_pictures=without_absolute_paths(report.missing_pictures),
            clinical=content.clinical(report.tables),
            results=sections,
            chart_words=CHART_WORDS,
            marks=MARKS,
            flags=_groups(report),
            studies=report.studies,
        )
    )


def _sections(results: Results) -> list[tuple[str, str, str, Sequence[Result]]]:
    """The sections that have a result: anchor, word of the navigation, head, results."""
    each = [
        ("defences", "Defences", "What the defences are worth", results.defences),
        ("detectors", "Detectors", "Whether attacks would be noticed", results.detectors),
        ("certificates", "Certificates", "What no change within a radius gets below", results.certificates),
    ]
    return [section for section in each if section[-1]]


def _title(report: Report) -> str:
    table = report.tables.summary
    models, data = (listed(list(dict.fromkeys(map(str, table[column])))) for column in ("model", "data"))
    return f"{models} on {data}"


def _heads(overall: Mapping[str, tuple[str, bool]]) -> list[tuple[str, str, str]]:
    """Name, head and kind of each column of the table.

    `n` is of numbers. A screen that is too narrow folds `least`, then `lesser`, then `broad`.
    """
    return [
        *(("model", "model", ""), ("attack", "attack", ""), ("loss", "loss", "lesser"), ("eps", "eps", "n")),
        *(("organ", "organ", "broad"), ("clean", "clean", "n broad"), ("adv", "attacked", "n")),
        *(("interval", "95 % CI", "n"), ("drop", "drop", "n lesser")),
        *((name, head, "n least") for name, (head, _) in overall.items()),
        *(("patients", "patients", "n lesser"), ("flags", "flags", "broad")),
    ]


def _doubts(flags: Sequence[Mapping[str, Any]]) -> str:
    """The flags in a sentence; "" if there are none."""
    each = dict.fromkeys(f"{flag['code']} {flag['title']}" for flag in flags)
    return f"Read with care: {'; '.join(each)}." if each else ""


@dataclass(frozen=True)
class _FlagGroup:
    title: str
    verdict: str
    todo: str
    explanation: str
    evidence: Sequence[tuple[str, str]]


def _groups(report: Report) -> list[tuple[str, _FlagGroup]]:
    """The flags by their code, with all their evidence."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for flag in report.flags:
        groups.setdefault(flag["code"], []).append(flag)
    return [
        (
            code,
            _FlagGroup(
                title=group[0]["title"],
                verdict=group[0]["verdict"],
                todo=group[0]["todo"],
                explanation=report.explanations.get(code, ""),
                evidence=[
                    (without_absolute_paths(flag["about"]), without_absolute_paths(flag["seen"])) for flag in group
                ],
            ),
        )
        for code, group in groups.items()
    ]


def _run_names(report: Report) -> list[str]:
    """The name of each run, with its id where two have the same."""
    table = report.tables.summary
    names = [
        " ".join(filter(None, [f"{row['model']}:", str(row["attack"]), str(row["loss"]), budget(row)]))
        for _, row in table.iterrows()
    ]
    return [
        name if names.count(name) == 1 else f"{name} ({run})" for name, run in zip(names, table["run_id"], strict=True)
    ]


def _worst(report: Report) -> int:
    """The place of the run that left least Dice."""
    table = report.tables.summary
    is_attack = table["role"] == "attack"
    left = table["mean_adv"].where(is_attack if is_attack.any() else ~is_attack)
    return int(left.fillna(2.0).to_numpy().argmin())


def _json(value: Any) -> str:
    """JSON that can stand in a script element: no character in it ends one."""
    text = json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    """The value with NaN as null, numpy's numbers as Python's, and text as it is shown."""
    if isinstance(value, Mapping):
        return {shown(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    return value


def _script(text: str) -> str:
    """A script that can stand in a page: nothing in it ends its element."""
    return re.sub(r"</(?=script)", r"<\\/", text.replace("\r", ""), flags=re.IGNORECASE).replace("<!--", "<\\!--")


def _hash(script: str) -> str:
    """The hash by which a content security policy allows a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
