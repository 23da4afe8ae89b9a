"""How runs came about: their studies, versions and hashes, and the commands that make them again."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_attack.errors import duration, listed, plural
from medseg_attack.escaping import shell, without_folders
from medseg_attack.runs.stored_files import STUDY_FILE, read_config, read_header
from medseg_attack.storage.paths import real_path, require_file

HASH_DIGITS = 12
_FIELD = re.compile(r"(\s*(?:- |[\w-]+: )*)((?:~|[A-Za-z]:)?[/\\].*)")


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


def studies(runs: Mapping[Path, str], workspace: Path) -> Iterator[StudyFacts]:
    """The studies of some runs, in the order of the runs.

    Args:
        runs: their ids, by their folders.
        workspace: folders in it are named from there; of others the last part is shown.
    """
    by_study: dict[Path, list[Path]] = {}
    for run in runs:
        by_study.setdefault(run.parent.parent, []).append(run)
    for folder, of_study in by_study.items():
        file = folder / STUDY_FILE
        text = require_file(file).read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        headers = [read_header(run) for run in of_study]
        hashes = [(runs[run], *_hashes(read_config(run))) for run in of_study]
        name = _name(folder, workspace)
        shown = "\n".join(map(_without_folders, text.split("\n")))
        yield StudyFacts(str(name), list(_facts(headers)), shown, hashes, list(_commands(name, bool(text))))


def _name(folder: Path, workspace: Path) -> Path:
    """A folder without those of the machine above it."""
    absolute, root = real_path(folder), real_path(workspace)
    return root.name / absolute.relative_to(root) if absolute.is_relative_to(root) else Path(absolute.name)


def _without_folders(line: str) -> str:
    """A line of a study without the folders of the machine; a path in it may have spaces."""
    field = _FIELD.fullmatch(line)
    return without_folders(line) if field is None else field[1] + re.split(r"[/\\]", field[2])[-1]


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
    yield "time", duration(sum(float(header.get("seconds", 0)) for header in headers))
    versions = dict(pair for header in headers for pair in header.get("versions", {}).items())
    if versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def _hashes(config: Mapping[str, Any]) -> list[str]:
    return [str(config.get(name, ""))[:HASH_DIGITS] for name in ("weights", "data", "cases")]


def _commands(folder: Path, has_study: bool) -> Iterator[str]:
    where = shell(str(folder))
    if has_study:
        yield f"medattack attack --config {shell(str(folder / STUDY_FILE))} --out AGAIN"
    yield f"medattack compare {where} --json"
    yield f"medattack report {where} --out report"
