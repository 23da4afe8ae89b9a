"""Entries of a leaderboard: one JSON file for a model on a data set under a threat. The rules: `docs/leaderboard.md`.

An entry holds numbers, hashes and names of models, organs and attacks. It holds no case, no patient and no path.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medseg_attack import __version__
from medseg_attack.checks.stored import records_of_stored
from medseg_attack.errors import InputError, listed, plural
from medseg_attack.escaping import shell, without_folders
from medseg_attack.registry.grammar import Spec
from medseg_attack.report.card.content import Subject, domain, name_of, strongest
from medseg_attack.report.tables.summaries import budget, organs
from medseg_attack.runs.grid import safe
from medseg_attack.runs.stored_files import read_config, read_header
from medseg_attack.runs.stored_specs import attack_spec, ball_spec, norm_of
from medseg_attack.stats.patients import interval
from medseg_attack.stats.scores import MEAN
from medseg_attack.storage.files import require_own
from medseg_attack.storage.forms import Form
from medseg_attack.storage.json_files import digest, plain, read_json, write_json
from medseg_attack.storage.kinds import instead
from medseg_attack.storage.paths import inside

ABOUT = "medattack leaderboard entry"  # sorted first, so that a file begins with it
STANDARD = "strongest"  # the attack that an entry in one of these norms must have been under
NORMS = ("linf", "l2")
DIGEST = "digest"  # the field with the hash of all others
Share = Field(ge=0, le=1)


class _Threat(Form):
    ball: str
    budget: str
    unit: str


class _Model(Form):
    name: str
    id: str
    weights: str
    parameters: int = Field(ge=0)


class _Attack(Form):
    attack: str
    loss: str
    knowledge: Literal["", "native", "adaptive"]
    mean: float | None = Share
    seed: int
    verified: bool
    checked: bool


class _Strongest(Form):
    attack: str
    clean: float | None = Share
    clean_low: float | None = Share
    clean_high: float | None = Share
    adv: float | None = Share
    low: float | None = Share
    high: float | None = Share
    noise: float | None = Share


class _Flag(Form):
    code: str
    title: str
    verdict: Literal["invalid", "upper bound on robustness", "note"]


class Entry(Form):
    """The fields of an entry.

    Attributes:
        cases: a hash of the data and of the cases that were attacked: only entries of the same cases compete.
        classes: the Dice of each organ and of their mean ("mean"), clean and under the attack that left least of it.
        complete: whether all cases of the split were attacked.
        digest: a hash of all other fields.
    """

    about: Literal["medattack leaderboard entry"]
    entry_version: Literal[1]
    medattack: str
    date: str
    dataset: str
    split: str
    cases: str
    unit: Literal["slice", "volume", "patient"]
    empty: Literal["one", "nan", "zero"]
    threat: _Threat
    model: _Model
    patients: int = Field(ge=1)
    units: int = Field(ge=1)
    complete: bool
    attacks: list[_Attack] = Field(min_length=1)
    organs: list[str] = Field(min_length=1)
    classes: dict[str, _Strongest]
    flags: list[_Flag]
    digest: str

    @property
    def board(self) -> tuple[str, ...]:
        """The fields that entries must share to compete."""
        threat = self.threat
        return self.dataset, self.split, self.cases, threat.ball, threat.budget, threat.unit, self.unit, self.empty

    @property
    def adv(self) -> float:
        """The mean Dice over organs under the attack that left least of it; -1 where there is none."""
        value = self.classes[MEAN].adv
        return -1.0 if value is None else value

    @property
    def obstacles(self) -> list[str]:
        """The reasons why the entry has no rank; none of one that has."""
        reasons = []
        if digest(self.model_dump(exclude={DIGEST})) != self.digest:
            reasons.append("changed after medattack wrote it")
        if not self.complete:
            reasons.append("part of the cases (--limit)")
        if self.split != "test":
            reasons.append(f"scored on the {self.split} split")
        if open_runs := sum(not attack.verified for attack in self.attacks):
            reasons.append(f"{open_runs} of {plural(len(self.attacks), 'run')} not verified")
        if not all(attack.checked for attack in self.attacks):
            reasons.append("checks were switched off (--no-checks)")
        reasons += [f"{flag.code} {flag.title}" for flag in self.flags if flag.verdict != "note"]
        if self._lacks_standard:
            reasons.append(f"not attacked with {STANDARD}")
        knowledge = {attack.knowledge for attack in self.attacks}
        if "native" in knowledge and "adaptive" not in knowledge:
            reasons.append("no attack knows its defence")
        if self.classes[MEAN].adv is None:
            reasons.append("no Dice")
        return reasons

    @property
    def _lacks_standard(self) -> bool:
        names = {spec.name for attack in self.attacks for spec in attack_spec(attack.attack).walk()}
        return _norm(self.threat.ball) in NORMS and STANDARD not in names

    @property
    def notes(self) -> list[str]:
        """The codes of flags that cost no rank."""
        return list(dict.fromkeys(flag.code for flag in self.flags if flag.verdict == "note"))


def _norm(ball: str) -> str:
    """The name of a ball alone: a ball held to a part of the image is a threat of its own."""
    try:
        spec: Spec = ball_spec(ball)
    except InputError:
        return ""
    return norm_of(spec) if len(list(spec.walk())) == 1 else ""


def entries(subject: Subject) -> Iterator[dict[str, Any]]:
    """The entries of a model on a set of cases: one for each ball and budget that it was attacked in."""
    attacks = subject.attacks.assign(domain=[domain(run) for _, run in subject.attacks.iterrows()])
    attacks = attacks.assign(size=[budget(run) for _, run in attacks.iterrows()])
    for (ball, size), of_threat in attacks.groupby(["domain", "size"], sort=False):
        runs = [Path(run) for run in of_threat["run"]]
        first, headers, configs = of_threat.iloc[0], [*map(read_header, runs)], [*map(read_config, runs)]
        names = [*organs(subject.table), MEAN]
        flags = records_of_stored(runs, subject.tables.unit)
        content = {
            "about": ABOUT,
            "entry_version": 1,
            "medattack": str(headers[0].get("provenance", {}).get("version", __version__)),
            "date": max(str(header.get("provenance", {}).get("date", ""))[:10] for header in headers),
            "dataset": str(first["data"]),
            "split": str(first["split"]),
            "cases": str(first["cases_id"]),
            "unit": subject.tables.unit,
            "empty": subject.tables.empty,
            "threat": {"ball": without_folders(str(ball)), "budget": size, "unit": str(first.get("eps_unit") or "")},
            "model": {
                "name": str(first["model"]),
                "id": str(first["model_id"]),
                "weights": str(configs[0]["weights"]),
                "parameters": int(first["n_parameters"]),
            },
            "patients": int(first["patients"]),
            "units": int(first["cases"]),
            "complete": not any(header.get("partial") for header in headers),
            "attacks": [
                {
                    "attack": without_folders(str(run["attack"]).removesuffix(" non_adaptive")),
                    "loss": without_folders(str(run["loss"])),
                    "knowledge": str(header.get("knowledge", "")),
                    "mean": float(run["mean_adv"]),
                    "seed": int(config["seed"]),
                    "verified": bool(run["verified"]),
                    "checked": bool(run["checks"]),
                }
                for (_, run), header, config in zip(of_threat.iterrows(), headers, configs, strict=True)
            ],
            "organs": names[:-1],
            "classes": {name: _strongest(subject, of_threat, name) for name in names},
            "flags": list({flag["code"]: _flag(flag) for flag in flags}.values()),
        }
        content = plain(content)
        yield content | {DIGEST: digest(content)}


def _flag(flag: Mapping[str, Any]) -> dict[str, str]:
    """A flag without its evidence, which may name a case."""
    return {name: flag[name] for name in ("code", "title", "verdict")}


def _strongest(subject: Subject, attacks: Any, name: str) -> dict[str, Any]:
    run = strongest(attacks, name)
    ends = ("low", "high") if name == MEAN else (f"{name}_low", f"{name}_high")
    cases = subject.tables.cases[subject.tables.cases["run"] == run["run"]]
    clean_low, clean_high = interval(cases if name == MEAN else cases[cases["cls"] == name], "dice_clean")
    table = subject.table
    noise = table[(table["role"] == "control") & (table["ball"] == run["ball"])]
    return {
        "attack": name_of(run),
        "clean": float(run[f"{name}_clean"]),
        "clean_low": clean_low,
        "clean_high": clean_high,
        "adv": float(run[f"{name}_adv"]),
        "low": float(run[ends[0]]),
        "high": float(run[ends[1]]),
        "noise": float("nan") if noise.empty else float(noise[f"{name}_adv"].min()),
    }


def place(entry: Mapping[str, Any]) -> str:
    """The path of an entry in a leaderboard's folder; a hash makes it unique where names are the same."""
    threat = entry["threat"]
    names = (
        f"{safe(entry['dataset'])[:60]}-{entry['cases'][:6]}",
        _short(f"{threat['ball']} {threat['budget']}{threat['unit']}"),
        f"{_short(entry['model']['id'])}.json",
    )
    return "/".join(name.lstrip("-.") for name in names)


def _short(text: str) -> str:
    short = safe(text)[:80]
    return short if short and len(safe(text)) <= 80 else f"{short}-{digest(text)[:6]}"


def write_entry(entry: dict[str, Any], folder: Path) -> Path:
    """Writes an entry below a leaderboard's folder, and returns its file.

    Raises:
        InputError: the file is there and no entry.
    """
    file = inside(folder, place(entry))
    require_own(file, re.compile(rb'\A\{\s*"about": "' + ABOUT.encode()))
    write_json(file, entry)
    return file


def read_entries(folder: Path) -> list[Entry]:
    """The entries of a leaderboard, in the order of their paths.

    Raises:
        InputError: there is none, or a file is none.
    """
    # the runs of a study lie as deep
    files = sorted(file for file in folder.glob("*/*/*.json") if not (file.parent / "parts").exists())
    if not files:
        got = instead(folder, "none", f"make one with medattack report RUNS --entry --out {shell(str(folder))}")
        raise InputError(f"expected entries in {folder}, as DATASET/THREAT/MODEL.json, {got}")
    return [_read(file) for file in files]


def _read(file: Path) -> Entry:
    entry = Entry.model_validate(read_json(file, Entry))
    lacking = [name for name in (*entry.organs, MEAN) if name not in entry.classes]
    if lacking:
        raise InputError(f"expected the Dice of {listed(lacking)} in {file}, got none; make the entry again")
    return entry
