"""Findings stored beside results: on a model in `checks.json`, on a run in its `run.json`. No torch in here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medseg_attack.checks.flags import SEVERITY, Finding, by_severity
from medseg_attack.checks.rows.asking import CHECKS, check_rows
from medseg_attack.checks.rows.runs import ALL_ATTACKS
from medseg_attack.checks.rows.strength import check_unit_of_attack, other_dice
from medseg_attack.metrics.empty import Empty
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.reading import flat, ids_of
from medseg_attack.runs.stored_files import FlagRecord, read_header
from medseg_attack.runs.stored_specs import attack_spec, was_checked
from medseg_attack.stats.scores import Unit
from medseg_attack.storage.forms import Form
from medseg_attack.storage.json_files import read_json, write_json

FILE = "checks.json"


class _Before(Form):
    """The findings on a model before its runs."""

    flags: list[FlagRecord]


def write_before(folder: Path, findings: Sequence[Finding], cases: Sequence[str]) -> None:
    """Stores the findings on a model before its runs, with the cases that the checks looked at."""
    write_json(folder / FILE, {"cases": list(cases), "flags": [finding.record() for finding in findings]})


def read_before(folder: Path) -> list[Finding]:
    """The stored findings on a model before its runs; none if no checks were made."""
    if not (folder / FILE).exists():
        return []
    return [Finding.from_record(record) for record in read_json(folder / FILE, _Before)["flags"]]


def of_runs(headers: Mapping[Path, dict[str, Any]], before: Sequence[Finding]) -> dict[Path, list[dict[str, str]]]:
    """The records of findings for each run of one model: its own and those that concern all its runs.

    Args:
        headers: what each run.json will hold, by the folder of the run.
    """
    tables = [RunFolder(path).rows().assign(run=str(path), **flat(header)) for path, header in headers.items()]
    checks = [check for check in CHECKS if check is not check_unit_of_attack]  # which depends on the table
    after = check_rows(pd.concat(tables, ignore_index=True), checks=checks) if tables else []
    findings = by_severity([*before, *after])
    return {path: [each.record() for each in findings if each.run in ("", str(path))] for path in headers}


def of_stored(models: Mapping[str, str], unit: Unit) -> dict[str, list[Finding]]:
    """The findings on finished runs in a table of that unit, by run and about the run's model.

    Args:
        models: what the model of each run is called.
    """
    named = _named({Path(run): model for run, model in models.items()})
    return {
        run: [Finding.from_record(named(Path(run), record)) for record in _records(read_header(Path(run)), unit)]
        for run in models
    }


def _records(header: Mapping[str, Any], unit: Unit) -> list[dict[str, str]]:
    """The findings in a run's header, and that its attack lowered another Dice than a table shows, if it did."""
    records: list[dict[str, str]] = header.get("flags", [])
    numbers = other_dice(attack_spec(header["attack"]), header.get("dims", 2), unit) if was_checked(header) else ""
    finding = Finding(check_unit_of_attack.flag, flat(header)["attack"], numbers)
    return [*records, finding.record()] if numbers else records


def codes(run: Path, unit: Unit) -> list[str]:
    """The codes of the findings on a finished run in a table of that unit, each once."""
    return list(dict.fromkeys(record["code"] for record in _records(read_header(run), unit)))


def _named(models: Mapping[Path, str]) -> Callable[[Path, Mapping[str, str]], dict[str, str]]:
    """A function that puts the model's name before what a record is about.

    Where the runs of a model come from several studies, a record on all attacks of one study has its name as well:
    another study may have those that it lacks.
    """
    folders = {model: {run.parent for run in models if models[run] == model} for model in models.values()}

    def named(run: Path, record: Mapping[str, str]) -> dict[str, str]:
        about, model = record["about"], models[run]
        if about == ALL_ATTACKS and len(folders[model]) > 1:
            about = f"{about} of {run.parent.parent.name}"
        return {**record, "about": f"{model}, {about}"}

    return named


def flags_of(runs: Sequence[Path], rows: pd.DataFrame, unit: Unit, empty: Empty) -> dict[Path, list[Finding]]:
    """The findings on each model and its runs, by the model's folder; the gravest first.

    Args:
        runs: folders of the runs.
        rows: their rows, from `runs.reading.read_runs`.
    """
    models = rows["run"].map({run: Path(run).parent for run in rows["run"].unique()})
    return {
        model: by_severity([*read_before(model), *check_rows(rows[models == model], unit=unit, empty=empty)])
        for model in dict.fromkeys(run.parent for run in runs)
    }


def with_ids(runs: Sequence[Path], findings: Mapping[Path, Sequence[Finding]]) -> list[dict[str, Any]]:
    """The flags as JSON shows them: each with its model and the ids of the runs that it concerns.

    Args:
        findings: from `flags_of`.
    """
    headers = {run: read_header(run) for run in runs}
    return _joined(
        (run, headers[run]["model"], finding.record())
        for model, of_model in findings.items()
        for finding in of_model
        for run in runs
        if run.parent == model and finding.run in ("", str(run))
    )


def records_of_stored(runs: Iterable[Path], unit: Unit) -> list[dict[str, Any]]:
    """The flags on finished runs in a table of that unit, as `with_ids` gives them; the gravest first."""
    headers = {path: read_header(path) for path in runs}
    named = _named({path: header["model"] for path, header in headers.items()})
    flags = _joined(
        (path, header["model"], named(path, record))
        for path, header in headers.items()
        for record in _records(header, unit)
    )
    return sorted(flags, key=lambda flag: (SEVERITY[flag["verdict"]], flag["code"]))


def _joined(flags: Iterable[tuple[Path, str, dict[str, str]]]) -> list[dict[str, Any]]:
    """Flags of single runs (run, label of its model, record), those that are alike in one record, in their order."""
    result: dict[tuple[str, ...], dict[str, Any]] = {}
    for run, model, record in flags:
        ids = ids_of(run)
        flag = {"model": model, "model_id": ids["model_id"], **record}
        result.setdefault(tuple(flag.values()), {**flag, "runs": []})["runs"].append(ids["run_id"])
    return list(result.values())
