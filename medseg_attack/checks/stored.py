"""Findings stored beside results: on a model in `checks.json`, on a run in its `run.json`. No torch in here."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medseg_attack.checks.flags import Finding, by_severity
from medseg_attack.checks.rows import check_rows
from medseg_attack.files import read_json, write_json
from medseg_attack.runs.folder import RunFolder

FILE = "checks.json"


def write_before(folder: Path, findings: Sequence[Finding], cases: Sequence[str]) -> None:
    """Stores the findings on a model before its runs, with the cases that the checks looked at."""
    write_json(folder / FILE, {"cases": list(cases), "flags": [finding.record() for finding in findings]})


def read_before(folder: Path) -> list[Finding]:
    """The stored findings on a model before its runs; none if no checks were made."""
    if not (folder / FILE).exists():
        return []
    return [Finding.from_record(record) for record in read_json(folder / FILE)["flags"]]


def of_runs(headers: Mapping[Path, dict[str, Any]], before: Sequence[Finding]) -> dict[Path, list[dict[str, str]]]:
    """The records of findings for each run of one model: its own and those that concern all its runs.

    Args:
        headers: what each run.json will hold, by the folder of the run.
    """
    tables = [RunFolder(path).rows().assign(run=str(path), **_flat(header)) for path, header in headers.items()]
    findings = [*before, *(check_rows(pd.concat(tables, ignore_index=True)) if tables else [])]
    findings = by_severity(findings)
    return {path: [each.record() for each in findings if each.run in ("", str(path))] for path in headers}


def of_stored(runs: Iterable[Path]) -> list[Finding]:
    """The findings that finished runs hold, about their model; those that runs of a model share are listed once."""
    headers = [read_json(path / "run.json") for path in runs]
    return by_severity(
        [
            Finding.from_record(record | {"about": f"{header['model']}, {record['about']}"})
            for header in headers
            for record in header.get("flags", [])
        ]
    )


def _flat(header: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in header.items() if not isinstance(value, dict | list)}
