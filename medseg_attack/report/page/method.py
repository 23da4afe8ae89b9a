"""How runs came about: their studies, versions and hashes, and the commands that make them again."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_attack.errors import listed, plural
from medseg_attack.runs.reading import ids_of
from medseg_attack.runs.stored_files import STUDY_FILE, read_config, read_header
from medseg_attack.storage.files import require_file

HASH_DIGITS = 12


@dataclass(frozen=True)
class StudyFacts:
    """A study and how it was computed.

    Attributes:
        name: its folder.
        facts: names with their values, as text.
        text: its `study.yaml`; "" where there is none.
        hashes: of each run: its id, and the beginnings of the hashes of weights, data and cases.
        commands: what makes its runs and tables again.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    text: str
    hashes: Sequence[tuple[str, ...]]
    commands: Sequence[str]


def studies(runs: Iterable[Path]) -> Iterator[StudyFacts]:
    """The studies of some runs, in the order of the runs."""
    by_study: dict[Path, list[Path]] = {}
    for run in runs:
        by_study.setdefault(run.parent.parent, []).append(run)
    for folder, of_study in by_study.items():
        file = folder / STUDY_FILE
        text = require_file(file).read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        headers = [read_header(run) for run in of_study]
        hashes = [(ids_of(run)["run_id"], *_hashes(read_config(run))) for run in of_study]
        yield StudyFacts(str(folder), list(_facts(headers)), text, hashes, list(_commands(folder, bool(text))))


def _facts(headers: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Facts on the computation of a study, from the headers of its runs; the name of the machine stays out."""
    yield "runs", plural(len(headers), "run")
    sources = [header.get("provenance", {}) for header in headers]
    for name, values in (
        ("dates", [str(facts.get("date", ""))[:10] for facts in sources]),
        ("medattack", [f"{facts.get('version', '')} {str(facts.get('commit', ''))[:12]}".strip() for facts in sources]),
        ("device", [str(header.get("device", "")) for header in headers]),
        ("batch size", [str(header.get("batch_size", "")) for header in headers]),
    ):
        if each := list(dict.fromkeys(filter(None, values))):
            yield name, listed(each, most=4)
    yield "time", f"{sum(float(header.get('seconds', 0)) for header in headers):.0f} s"
    versions = dict(pair for header in headers for pair in header.get("versions", {}).items())
    if versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def _hashes(config: Mapping[str, Any]) -> list[str]:
    return [str(config.get(name, ""))[:HASH_DIGITS] for name in ("weights", "data", "cases")]


def _commands(folder: Path, has_study: bool) -> Iterator[str]:
    where = shlex.quote(str(folder))
    if has_study:
        yield f"medattack attack --config {shlex.quote(str(folder / STUDY_FILE))} --out AGAIN"
    yield f"medattack compare {where} --json"
    yield f"medattack report {where} --out report"
