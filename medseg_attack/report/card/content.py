"""The content of a card: sections of sentences and tables, from the summary that `medattack compare` prints."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medseg_attack import __version__, registry
from medseg_attack.checks.stored import codes, records_of_stored
from medseg_attack.errors import InputError, listed, plural
from medseg_attack.escaping import without_folders
from medseg_attack.metrics.empty import EMPTY_RULES
from medseg_attack.registry.table import entries
from medseg_attack.report.card.documents import ASKED, LIMITS, THREATS
from medseg_attack.report.page.content import Tables, native_budget
from medseg_attack.report.page.sections import Result, Results
from medseg_attack.report.sheet import Sheet, between, number
from medseg_attack.report.tables.summaries import budget, organs
from medseg_attack.runs.rows import NAMES
from medseg_attack.runs.stored_files import read_config, read_header
from medseg_attack.runs.stored_specs import attack_spec, ball_spec, core_of, sizeless
from medseg_attack.stats.patients import FEW, interval, warning
from medseg_attack.stats.scores import MEAN

MOST_ROWS = 16  # of the strongest attacks: more would take a page of their own
FIELDS = (
    "what the model is for, and what it is not for",
    "which patients, scanners and sites",
    "who acts on its outlines, and what a wrong one would lead to",
    "who could change a scan on its way to the model",
)
# families of attacks, as a card names them where none was tried
KINDS = {
    "gradient": "attacks along the model's gradient",
    "minimal": "the least change that succeeds",
    "queries": "attacks that only ask the model",
    "surrogate": "images made for another model (transfer)",
    "universal": "one perturbation for all scans",
    "measurements": "a volume or an ejection fraction that is moved",
    "physical": "changes that scanners and bodies make",
    "goal": "attacks that lead to a mask of the attacker's choice",
}


@dataclass(frozen=True)
class Section:
    """A section of a card.

    Attributes:
        asked: what the documents ask for that it has something on.
        fields: what a person has to fill in.
        points: a list of sentences.
    """

    title: str
    asked: str
    lines: Sequence[str] = ()
    fields: Sequence[str] = ()
    sheets: Sequence[Sheet] = ()
    points: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """The card of one model on one set of cases.

    Attributes:
        name: what its files are called, without an ending.
    """

    name: str
    title: str
    sections: Sequence[Section]
    limits: Sequence[str] = LIMITS


@dataclass(frozen=True)
class Subject:
    """The runs of one model on one set of cases, which a card is about.

    Attributes:
        table: a row per run, from `stats.scores.summary`.
        flags: those of these runs, from `checks.stored.records_of_stored`.
        results: those of this model.
    """

    tables: Tables
    table: pd.DataFrame
    flags: Sequence[Mapping[str, Any]]
    results: Results

    @property
    def first(self) -> "pd.Series[Any]":
        return self.table.iloc[0]

    @property
    def attacks(self) -> pd.DataFrame:
        return self.table[self.table["role"] == "attack"]

    @property
    def runs(self) -> list[Path]:
        return [Path(run) for run in self.table["run"]]

    def codes(self, run: str) -> str:
        """The flags of a run."""
        return " ".join(codes(Path(run), self.tables.unit))

    def rows(self, run: str) -> pd.DataFrame:
        """The rows of a run."""
        return self.tables.rows[self.tables.rows["run"] == run]


def subjects(tables: Tables, results: Results) -> Iterator[Subject]:
    """The runs of some tables, model by model.

    Raises:
        InputError: a model was not attacked.
    """
    for (model, _), table in tables.summary.groupby(["model_id", "cases_id"], sort=False):
        own = table[[column for column in table if column in NAMES or table[column].notna().any()]]
        name = str(own.iloc[0]["model"])
        labels = {name, *tables.rows.loc[tables.rows["model_id"] == model, "label"]}
        if not (own["role"] == "attack").any():
            raise InputError(f"expected attacks on {name}, got none among its runs; name those, too")
        yield Subject(
            tables,
            own,
            records_of_stored(map(Path, own["run"]), tables.unit),
            Results(
                *(tuple(_about(each, labels)) for each in (results.defences, results.detectors, results.certificates))
            ),
        )


def _about(results: Iterable[Result], labels: set[str]) -> Iterator[Result]:
    return (result for result in results if labels & set(result.about))


def cards(all_subjects: Iterable[Subject]) -> list[Card]:
    """The cards of some models; of a model on several sets of cases one for each."""
    each = list(all_subjects)
    names = [str(subject.first["model_id"]) for subject in each]
    return [
        _card(subject, f"card-{name}" if names.count(name) == 1 else f"card-{name}-{subject.first['cases_id'][:6]}")
        for subject, name in zip(each, names, strict=True)
    ]


def _card(subject: Subject, name: str) -> Card:
    first = subject.first
    sections = [
        Section("Intended use", ASKED["use"], fields=FIELDS),
        _data(subject),
        _clean(subject),
        _threats(subject),
        _strongest(subject),
        *_beside(subject.results),
        _untried(subject),
        _flags(subject),
        _method(subject),
    ]
    return Card(name, f"Robustness card: {first['model']} on {first['data']}", sections)


def _data(subject: Subject) -> Section:
    first, config = subject.first, read_config(subject.runs[0])
    part = "part of the cases (--limit)" if first["partial"] else "all cases"
    facts = [
        ("model", str(first["model"])),
        ("parameters", f"{int(first['n_parameters']):,}"),
        ("weights, SHA-256 begins", str(config["weights"])[:16]),
        ("data set", f"{first['data']}, {first['split']} split, {part}"),
        ("data, SHA-256 begins", str(config["data"])[:16]),
        ("patients", str(int(first["patients"]))),
        (f"{subject.tables.unit}s", str(int(first["cases"]))),
        ("organs", ", ".join(organs(subject.table))),
    ]
    n = int(first["patients"])
    few = f"{warning(n)}" if n < FEW else ""
    sheet = Sheet("Model and data", ["fact", "value"], facts, left=2)
    return Section("Model and data", ASKED["data"], [few] if few else [], sheets=[sheet])


def _clean(subject: Subject) -> Section:
    first, of = subject.first, subject.tables
    cases = of.cases[of.cases["run"] == first["run"]]
    rows = []
    for organ in (*organs(subject.table), MEAN):
        of_organ = cases if organ == MEAN else cases[cases["cls"] == organ]
        dice, ends = number(first[f"{organ}_clean"]), between(*interval(of_organ, "dice_clean"))
        rows.append(["mean over organs" if organ == MEAN else organ, dice, ends])
    caption = (
        f"Dice per {of.unit}; interval: of the mean, over {plural(first['patients'], 'patient')}. Empty masks: "
        f"{EMPTY_RULES[of.empty]}."
    )
    sheet = Sheet("Accuracy without attack", ["organ", "Dice", "95 % CI"], rows, caption)
    return Section("Accuracy without attack", ASKED["clean"], sheets=[sheet])


def access(run: "pd.Series[Any]") -> str:
    """The access that an attacker needs for an attack: "white box", "queries", "surrogate" ..."""
    registry.names("attack")  # loads what is registered
    entry = entries.get(core_of(attack_spec(str(run["attack"]))).name)
    if entry is not None and entry.threat:
        return str(entry.threat)
    return "white box" if run["backwards"] > 0 else "queries (scores)" if run["forwards"] > 1 else "no model"


def name_of(run: "pd.Series[Any]") -> str:
    """The attack of a run with its objective."""
    return without_folders(" ".join(filter(None, [str(run["attack"]), str(run["loss"])])))


def domain(run: "pd.Series[Any]") -> str:
    """The ball of a run, without its size."""
    return str(sizeless(ball_spec(str(run["ball"]))))


def _threats(subject: Subject) -> Section:
    attacks = subject.attacks
    table = attacks.assign(domain=[domain(run) for _, run in attacks.iterrows()])
    rows = []
    for (attack, loss, ball), of_attack in table.groupby(["attack", "loss", "domain"], sort=False):
        sizes = [budget(run) for _, run in of_attack.sort_values("eps").iterrows()]
        goal = "a chosen mask" if "toward" in f"{loss} {attack}" else "any wrong mask"
        goal = "another measurement" if "measurements" in _families(str(attack)) else goal
        first = of_attack.iloc[0]
        known = {"native": "not known", "adaptive": "known"}.get(str(first.get("knowledge", "")), "none declared")
        rows.append(
            [
                name_of(first).replace(" non_adaptive", ""),
                access(first),
                goal,
                str(ball),
                ", ".join(dict.fromkeys(sizes)),
                known,
            ]
        )
    heads = ["attack", "attacker has", "goal", "domain (ball)", "budgets", "defence"]
    worst = attacks.sort_values("eps").iloc[-1]
    lines = [
        "In the words of NIST: evasion, at deployment, against the integrity of the answer. The attacker changes the "
        "scan and nothing else.",
        f"Largest budget in the scans' own units: {native_budget(worst, subject.rows(str(worst['run'])))}.",
    ]
    return Section(
        "Threat models that were tried", ASKED["threats"], lines, sheets=[Sheet("Attacks", heads, rows, left=6)]
    )


def strongest(table: pd.DataFrame, organ: str) -> "pd.Series[Any]":
    """The run of an attack that left least Dice of an organ."""
    return table.iloc[int(table[f"{organ}_adv"].fillna(2.0).to_numpy().argmin())]


def _strongest(subject: Subject) -> Section:
    attacks = subject.attacks.assign(domain=[domain(run) for _, run in subject.attacks.iterrows()])
    shown = [*organs(subject.table), MEAN]
    groups = [(key, of_ball) for key, of_ball in attacks.groupby(["domain", "eps"], sort=True, dropna=False)]
    caption = (
        f"Dice per {subject.tables.unit}; interval: of the mean under attack, over patients. Noise: a random change of "
        "that size, - where none was run."
    )
    if len(groups) * len(shown) > MOST_ROWS:
        largest: dict[str, Any] = {str(key[0]): (key, of_ball) for key, of_ball in groups}
        left_out = len(groups) - len(largest)
        groups = list(largest.values())
        caption += f" The largest budget of each ball; {plural(left_out, 'smaller one')} left out, see the page."
    rows, rules, sources = [], set(), []
    for (ball, _), of_ball in groups:
        for organ in shown:
            run = strongest(of_ball, organ)
            sources.append(str(run["run_id"]))
            ends = ("low", "high") if organ == MEAN else (f"{organ}_low", f"{organ}_high")
            rows.append(
                [
                    f"{ball} {budget(run)}",
                    "mean over organs" if organ == MEAN else organ,
                    name_of(run),
                    number(run[f"{organ}_clean"]),
                    number(run[f"{organ}_adv"]),
                    between(run[ends[0]], run[ends[1]]),
                    _noise(subject.table, run, organ),
                    subject.codes(str(run["run"])),
                ]
            )
        rules.add(len(rows) - 1)
    heads = ["budget", "organ", "strongest attack", "clean", "attacked", "95 % CI", "noise", "flags"]
    sheet = Sheet("Strongest attack", heads, rows, caption, left=3, rules=frozenset(rules))
    points = [f"Runs of these numbers: {', '.join(dict.fromkeys(sources))}."]
    return Section("Strongest attack, organ by organ", ASKED["strongest"], sheets=[sheet], points=points)


def _noise(table: pd.DataFrame, run: "pd.Series[Any]", organ: str) -> str:
    """The Dice of an organ under noise in the ball of a run; "-" where no noise was run."""
    controls = table[(table["role"] == "control") & (table["ball"] == run["ball"])]
    return number(float("nan") if controls.empty else float(controls[f"{organ}_adv"].min()))


def _beside(results: Results) -> Iterator[Section]:
    """The section on defences, detectors and certificates; none where there are none."""
    points = [sentence for result in results.defences for sentence in result.verdict]
    points += [f"{result.sheet.title}: {sentence}" for result in results.detectors for sentence in result.verdict]
    bounds = [f"{result.sheet.title}: {sentence}" for result in results.certificates for sentence in result.verdict]
    if points or bounds:
        sheets = [result.sheet for result in results.certificates]
        yield Section("Defences, detectors, certificates", ASKED["beside"], sheets=sheets, points=[*points, *bounds])


def _untried(subject: Subject) -> Section:
    attacks = subject.attacks
    tried = _kinds(attacks)
    balls = listed(list(dict.fromkeys(domain(run) for _, run in attacks.iterrows())), most=6)
    evasion = ["evasion, adversarial examples", "AI Act, Art. 15; FDA; NIST", f"tried in {balls}; see above"]
    triggers = any(attack_spec(str(name)).name == "trigger" for name in attacks["attack"])
    rows = [evasion]
    for threat in THREATS:
        is_tried = triggers and threat.name == "data poisoning"
        rows.append([threat.name, threat.documents, "tried: a trigger; see above" if is_tried else threat.status])
    missing = [text for kind, text in KINDS.items() if kind not in tried]
    points = [f"Of evasion, these were not tried: {'; '.join(missing)}."] if missing else []
    if not subject.results.certificates:
        points.append("No bound was certified: that no attack did more does not mean that none could.")
    if not subject.results.detectors:
        points.append("Whether anybody would notice was not tried.")
    points.append(f"Other data than {subject.first['data']}, and other budgets than those above, were not tried.")
    sheet = Sheet("Threats by name", ["threat", "named by", "here"], rows, left=3)
    return Section("What was not tried", ASKED["untried"], sheets=[sheet], points=points)


def _families(attack: str) -> set[str]:
    """The families of an attack and of those in it."""
    return {entries[part.name].family for part in attack_spec(attack).walk() if part.name in entries}


def _kinds(attacks: pd.DataFrame) -> set[str]:
    """The keys of `KINDS` that attacks are of."""
    kinds: set[str] = set()
    for _, run in attacks.iterrows():
        has = access(run)
        kinds |= {"queries"} if has.startswith("queries") else {"surrogate"} if has == "surrogate" else set()
        families = _families(str(run["attack"]))
        kinds |= families & {*KINDS}
        if has.startswith("white box") and not families & {"minimal", "physical", "universal", "measurements"}:
            kinds.add("gradient")
        if "toward" in f"{run['loss']} {run['attack']}":
            kinds.add("goal")
    return kinds


def _flags(subject: Subject) -> Section:
    each = {flag["code"]: flag for flag in subject.flags}
    if not each:
        line = "No flag was raised; that does not prove robustness."
        checked = all(read_header(run).get("flags") is not None for run in subject.runs)
        return Section("Flags", ASKED["flags"], [line if checked else "The checks were switched off (--no-checks)."])
    rows = [[code, flag["verdict"], flag["title"], flag["todo"]] for code, flag in each.items()]
    sheet = Sheet("Flags", ["flag", "verdict", "reason to doubt a number", "what to do"], rows, left=4)
    return Section("Flags", ASKED["flags"], sheets=[sheet])


def _method(subject: Subject) -> Section:
    headers = [read_header(run) for run in subject.runs]
    dates = sorted({str(header.get("provenance", {}).get("date", ""))[:10] for header in headers} - {""})
    versions = sorted({str(header.get("provenance", {}).get("version", "")) for header in headers} - {""})
    seeds = sorted({str(read_config(run)["seed"]) for run in subject.runs})
    n_verified = int(subject.table["verified"].sum())
    when = f"on {dates[0]}" if len(dates) == 1 else f"from {dates[0]} to {dates[-1]}" if dates else "on an unknown date"
    points = [
        f"{plural(len(headers), 'run')}, made {when} with medattack {listed(versions) or 'of an unknown version'}; "
        f"seed {listed(seeds)}.",
        f"{n_verified} of them had their stored scans read again and checked (medattack verify).",
        f"medattack {__version__} made this card. The page of medattack report has all numbers and the commands that "
        "make them again.",
    ]
    return Section("How it was made", ASKED["method"], points=points)
