"""Findings beside results: those on the model in `checks.json`, those on a run in its `run.json`. No torch in here."""

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
    """Stores what was found on a model before its runs, and on which cases it was looked for."""
    write_json(folder / FILE, {"cases": list(cases), "flags": [finding.record() for finding in findings]})


def read_before(folder: Path) -> list[Finding]:
    """What was found on a model before its runs; nothing if nobody looked."""
    if not (folder / FILE).exists():
        return []
    return [Finding(one["code"], one["about"], one["seen"]) for one in read_json(folder / FILE)["flags"]]


def of_runs(headers: Mapping[Path, dict[str, Any]], before: Sequence[Finding]) -> dict[Path, list[dict[str, str]]]:
    """Per run of one model its flags as they are stored: its own and those that concern all.

    Args:
        headers: what is going to be in each run's run.json.
    """
    tables = [RunFolder(path).rows().assign(run=str(path), **_flat(header)) for path, header in headers.items()]
    findings = [*before, *(check_rows(pd.concat(tables, ignore_index=True)) if tables else [])]
    return {path: [one.record() for one in by_severity(findings) if one.run in ("", str(path))] for path in headers}


def of_stored(runs: Iterable[Path]) -> list[Finding]:
    """The flags that finished runs hold, with their model; what runs of a model share once, invalid first."""
    headers = [read_json(path / "run.json") for path in runs]
    return by_severity(
        [
            Finding(one["code"], f"{header['model']}, {one['about']}", one["seen"])
            for header in headers
            for one in header.get("flags", [])
        ]
    )


def _flat(header: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in header.items() if not isinstance(value, dict | list)}
