"""Did it get worse? What rules say of runs, and of what changed since those of a reference. No torch in here.

A drop or a rise is paired: the difference is taken case by case, and its interval and test are over patients.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from medseg_attack.checks.flags import Finding
from medseg_attack.errors import InputError, nearest, plural
from medseg_attack.gate.rules import NUMBER, FlagRule, Rule, number
from medseg_attack.metrics.empty import Empty
from medseg_attack.report.tables.summaries import budget
from medseg_attack.runs.rows import NAMES
from medseg_attack.stats.comparisons import by_pair
from medseg_attack.stats.intervals import Interval
from medseg_attack.stats.patients import TESTS_FROM, Difference, change, difference, holm, paired, without_power
from medseg_attack.stats.scores import Unit, bounds_of, measures, pooled, scans, scored

# columns that a filter may mean beside its own: models of one label have longer names, and tables show budgets as typed
SHOWN = {"model": "label", "eps": "typed"}


@dataclass(frozen=True)
class Verdict:
    """A rule's verdict on one run.

    Attributes:
        organ: "mean" for all.
        value: the level, or its change from the reference, with its 95 % interval over patients.
        p: that of the signed-rank test against the rule's number, Holm over what the rule looks at.
        n: number of patients.
        flags: codes of the flags that a rule on flags found; `value` is how many they are.
        of_reference: whether the run is the reference's, on which rules on flags have a verdict, too.
    """

    rule: str
    model: str
    attack: str
    loss: str
    eps: float
    organ: str
    value: float
    low: float
    high: float
    p: float
    n: int
    failed: bool
    budget: str
    flags: tuple[str, ...] = ()
    of_reference: bool = False

    @property
    def run(self) -> str:
        """The run by its model, attack, loss and budget, and whether it is the reference's."""
        return self.run_with(self.budget)

    def run_with(self, budget: str) -> str:
        """The run, with its budget in words of the caller."""
        return " ".join(filter(None, [self.model, self.attack, self.loss, budget, "(reference)" * self.of_reference]))

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        start = f"{self.rule} {'fails' if self.failed else 'passes'} for {self.run_with(f'eps {self.budget}')}"
        if not self.organ:
            return f"{start}: {', '.join(self.flags) or 'no such flag'}"
        patients = plural(self.n, "patient")
        numbers = f"{self.value:.4f}, 95 % interval {self.low:.4f} to {self.high:.4f}, p {self.p:.2g}, {patients}"
        return f"{start}, {self.organ}: {numbers}"


def judge(
    rules: Sequence[Rule | FlagRule],
    new: pd.DataFrame,
    old: pd.DataFrame | None,
    flags: Mapping[str, Sequence[Finding]],
    *,
    unit: Unit,
    empty: Empty,
) -> list[Verdict]:
    """The verdict of every rule on every run that it looks at; unless a rule is on flags, no flag may say invalid.

    Args:
        new: rows of the new runs.
        old: rows of the reference's runs; a run and its reference have the same `pair`.
        flags: the findings on each run, the reference's among them.

    Raises:
        InputError: a rule is about something that is not there, or so few patients can never fail it.
    """
    of_rules = [
        verdict
        for rule in rules
        for verdict in (
            _verdicts(rule, new, old, unit, empty) if isinstance(rule, Rule) else _flag_verdicts(rule, new, old, flags)
        )
    ]
    if not rules or any(isinstance(rule, FlagRule) for rule in rules):
        return of_rules
    return of_rules + [each for each in _flag_verdicts(NO_INVALID, new, old, flags) if each.failed]


NO_INVALID = FlagRule("flag=invalid", "invalid")


def _flag_verdicts(
    rule: FlagRule, new: pd.DataFrame, old: pd.DataFrame | None, flags: Mapping[str, Sequence[Finding]]
) -> list[Verdict]:
    rows = _filtered(rule, new if old is None else pd.concat([new, old], ignore_index=True))
    if rule is not NO_INVALID and not rows["checks"].all():
        run = rows.loc[~rows["checks"].astype(bool), "run"].iloc[0]
        raise InputError(
            f"expected runs with their flags for --fail-if '{rule.text}', got {run}, made with --no-checks; "
            "run its attack again without --no-checks into another --out"
        )
    of_new = set(new["run"])
    verdicts = []
    for run, of_run in rows.groupby("run", sort=False):
        codes = {each.code for each in flags[str(run)] if rule.flag in (each.code, each.flag.verdict)}
        n = of_run["group"].nunique()
        verdict = _of_run(rule.text, of_run.iloc[0], "", Difference(len(codes), math.nan, math.nan, math.nan, n))
        flagged = replace(verdict, failed=bool(codes), flags=tuple(sorted(codes)))
        verdicts.append(replace(flagged, of_reference=run not in of_new))
    return verdicts


def _of_run(rule: str, header: "pd.Series[float]", organ: str, result: Difference) -> Verdict:
    model, attack, loss, eps = (header[key] for key in NAMES)
    numbers = result.mean, result.low, result.high, result.p, result.n
    return Verdict(rule, str(model), str(attack), str(loss), float(eps), organ, *numbers, False, budget(header))


def _verdicts(rule: Rule, new: pd.DataFrame, old: pd.DataFrame | None, unit: Unit, empty: Empty) -> list[Verdict]:
    if rule.change and old is None:
        raise InputError(f"expected a reference for --fail-if '{rule.text}', got none; give --reference OLD")
    rows = _filtered(rule, new)
    if "attack" not in rule.where and (rows["role"] == "attack").any():
        rows = rows[rows["role"] == "attack"]  # a control is no claim
    headers = dict(rows.drop_duplicates("pair").set_index("pair").iterrows())
    values = _values(rule, rows, old, unit, empty)
    bounds = bounds_of(rule.level, rows)
    verdicts = [_verdict(rule, headers[pair], of_pair, bounds) for pair, of_pair in values.groupby("run", sort=False)]
    if rule.significant:
        _refuse_powerless(rule, verdicts)
    adjusted = holm([verdict.p for verdict in verdicts])
    return [replace(each, p=p, failed=_fails(rule, each, p)) for each, p in zip(verdicts, adjusted, strict=True)]


def _filtered(rule: Rule | FlagRule, rows: pd.DataFrame) -> pd.DataFrame:
    typed = {run["run"]: budget(run) for _, run in rows.drop_duplicates("run").iterrows()}
    rows = rows.assign(typed=rows["run"].map(typed))
    for key, expected in rule.where.items():
        if key == "organ":
            continue
        names = [key, SHOWN[key]] if key in SHOWN else [key]
        values = list(dict.fromkeys(value for name in names for value in rows[name].unique().tolist()))
        matches = [value for value in values if _is(value, expected)]
        if not matches:
            raise InputError(
                f"expected a run with {key} {expected!r} for --fail-if '{rule.text}', got none; "
                + nearest(expected, typed.values() if key == "eps" else map(str, values))
            )
        rows = rows[rows[names].isin(matches).any(axis=1)]
    return rows


def _is(value: object, expected: str) -> bool:
    if isinstance(value, float) and NUMBER.fullmatch(expected):
        return bool(np.isclose(value, number(expected), rtol=1e-9, atol=0))
    return str(value) == expected


def _values(rule: Rule, new: pd.DataFrame, old: pd.DataFrame | None, unit: Unit, empty: Empty) -> pd.DataFrame:
    """The rule's level, or its rise, per pair (in the column `run`), case and class, as the column `difference`."""
    cases = _of_organ(rule, _levels(rule, by_pair(new), unit, empty))
    if not rule.change:
        return cases.rename(columns={rule.level: "difference"})
    assert old is not None
    like = by_pair(old[old["pair"].isin(new["pair"])])
    return paired(cases, _of_organ(rule, _levels(rule, like, unit, empty)), rule.level, within=["run"])


def _levels(rule: Rule, rows: pd.DataFrame, unit: Unit, empty: Empty) -> pd.DataFrame:
    """Cases with the rule's level; distances are a scan's, whatever the unit."""
    when, _, name = rule.level.partition("_")
    if name in measures(rows) and when in ("clean", "adv"):
        return scans(rows).rename(columns={f"{name}_{when}": rule.level})
    cases = scored(pooled(rows, unit), empty)
    levels = {f"{when}_{name}": cases[f"{name}_{when}"] for when in ("clean", "adv") for name in ("dice", "iou")}
    levels["missed"] = (cases["n_adv"] == 0).astype(float).where(cases["hit_clean"] > 0)
    if rule.level not in levels:
        known = [*levels, *(f"{when}_{name}" for name in measures(rows) for when in ("clean", "adv"))]
        raise InputError(
            f"expected a metric that the runs hold in --fail-if '{rule.text}', got {rule.level!r}; "
            + nearest(rule.level, known)
        )
    return cases.assign(**levels)


def _of_organ(rule: Rule, cases: pd.DataFrame) -> pd.DataFrame:
    organ = rule.where.get("organ")
    if organ is None:
        return cases
    organs_of = cases.groupby("run", sort=False)["cls"].unique()
    for organs in organs_of:
        if organ not in organs:
            raise InputError(
                f"expected an organ of the runs in --fail-if '{rule.text}', got {organ!r}; " + nearest(organ, organs)
            )
    return cases[cases["cls"] == organ]


def _verdict(rule: Rule, header: "pd.Series[float]", values: pd.DataFrame, bounds: Interval) -> Verdict:
    match rule.change:
        case "":
            result = difference(values, beyond=rule.number, bounds=bounds)
        case "rise":
            result = change(values, beyond=rule.number, bounds=bounds)
        case _:
            rise = change(values, beyond=-rule.number, bounds=bounds)
            result = replace(rise, mean=-rise.mean, low=-rise.high, high=-rise.low)
    organ = rule.where.get("organ", "mean")
    if result.mean != result.mean:
        raise InputError(
            f"expected a value of {rule.level} ({organ}) to judge by --fail-if '{rule.text}', got none in any case; "
            "choose another metric or organ"
        )
    return _of_run(rule.text, header, organ, result)


def _fails(rule: Rule, verdict: Verdict, p: float) -> bool:
    if not rule.significant:
        return rule.holds(verdict.value)
    return rule.holds(verdict.low) and rule.holds(verdict.high) and p < 0.05


def _refuse_powerless(rule: Rule, verdicts: Sequence[Verdict]) -> None:
    """A gate that cannot fail is not one."""
    n = min(verdict.n for verdict in verdicts)
    if powerless := without_power(n, len(verdicts)):
        enough, remedy = "enough patients", "narrow the rule with @attack= or @eps="
        if n < TESTS_FROM:
            enough, remedy = f"{TESTS_FROM} patients or more", "attack more patients"
        raise InputError(
            f"expected {enough} for --fail-if '{rule.text}' to be able to fail, got {n}, and {powerless}; "
            f"drop @sig, or {remedy}"
        )
