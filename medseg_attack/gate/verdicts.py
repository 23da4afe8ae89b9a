"""Did it get worse? What rules say of runs, and of what changed since those of a reference. No torch in here.

A drop or a rise is paired: the difference is taken case by case, and its interval and test are over patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from medseg_attack.errors import InputError, nearest, plural
from medseg_attack.gate.rules import NUMBER, Rule, number
from medseg_attack.metrics.empty import Empty
from medseg_attack.runs.rows import NAMES
from medseg_attack.stats.patients import difference, holm, paired, warning
from medseg_attack.stats.scores import Unit, measures, pooled, scored


@dataclass(frozen=True)
class Verdict:
    """A rule's verdict on one run.

    Attributes:
        organ: "mean" for all.
        value: the level, or its change from the reference, with its 95 % interval over patients.
        p: that of the signed-rank test against the rule's number, Holm over what the rule looks at.
        n: number of patients.
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

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        run = " ".join(filter(None, [self.model, self.attack, self.loss, f"eps {self.eps:.4g}"]))
        patients = plural(self.n, "patient")
        numbers = f"{self.value:.4f}, 95 % interval {self.low:.4f} to {self.high:.4f}, p {self.p:.2g}, {patients}"
        return f"{self.rule} {'fails' if self.failed else 'passes'} for {run}, {self.organ}: {numbers}"


def judge(
    rules: Sequence[Rule], new: pd.DataFrame, old: pd.DataFrame | None, *, unit: Unit, empty: Empty
) -> list[Verdict]:
    """The verdict of every rule on every run that it looks at.

    Args:
        new: rows of the new runs.
        old: rows of the reference's runs; a run and its reference have the same `pair`.

    Raises:
        InputError: a rule is about something that is not there, or so few patients can never fail it.
    """
    return [verdict for rule in rules for verdict in _verdicts(rule, new, old, unit, empty)]


def _verdicts(rule: Rule, new: pd.DataFrame, old: pd.DataFrame | None, unit: Unit, empty: Empty) -> list[Verdict]:
    if rule.change and old is None:
        raise InputError(f"expected a reference for --fail-if '{rule.text}', got none; give --reference OLD")
    rows = _filtered(rule, new)
    values = [
        (of_run.iloc[0], _values(rule, of_run, None if old is None else old[old["pair"] == run], unit, empty))
        for run, of_run in rows.groupby("pair", sort=False)
    ]
    verdicts = [_verdict(rule, header, of_run) for header, of_run in values]
    if rule.significant:
        _refuse_powerless(rule, verdicts)
    adjusted = holm([verdict.p for verdict in verdicts])
    return [replace(each, p=p, failed=_fails(rule, each, p)) for each, p in zip(verdicts, adjusted, strict=True)]


def _filtered(rule: Rule, rows: pd.DataFrame) -> pd.DataFrame:
    for key, wanted in rule.where.items():
        if key == "organ":
            continue
        values = rows[key].unique().tolist()
        matches = [value for value in values if _is(value, wanted)]
        if not matches:
            raise InputError(
                f"expected a run with {key} {wanted!r} for --fail-if '{rule.text}', got none; "
                + nearest(wanted, map(str, values))
            )
        rows = rows[rows[key].isin(matches)]
    return rows


def _is(value: object, wanted: str) -> bool:
    if isinstance(value, float) and NUMBER.fullmatch(wanted):
        return bool(np.isclose(value, number(wanted), rtol=1e-9, atol=0))
    return str(value) == wanted


def _values(rule: Rule, new: pd.DataFrame, old: pd.DataFrame | None, unit: Unit, empty: Empty) -> pd.DataFrame:
    """The rule's value per case and class, as the column `difference`."""
    cases = _of_organ(rule, _levels(rule, new, unit, empty))
    if not rule.change:
        return cases.rename(columns={rule.level: "difference"})
    assert old is not None
    before = _of_organ(rule, _levels(rule, old, unit, empty))
    change = paired(cases, before, rule.level)
    return change if rule.change == "rise" else change.assign(difference=-change["difference"])


def _levels(rule: Rule, rows: pd.DataFrame, unit: Unit, empty: Empty) -> pd.DataFrame:
    """Cases with the rule's level; distances are a scan's, whatever the unit."""
    when, _, name = rule.level.partition("_")
    if name in measures(rows) and when in ("clean", "adv"):
        cases = rows.drop_duplicates(["run", "volume", "cls"]).rename(columns={f"{name}_{when}": rule.level})
        return cases.assign(unit=cases["volume"])
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
    organs = cases["cls"].unique().tolist()
    if organ not in organs:
        raise InputError(
            f"expected an organ of the runs in --fail-if '{rule.text}', got {organ!r}; " + nearest(organ, organs)
        )
    return cases[cases["cls"] == organ]


def _verdict(rule: Rule, header: "pd.Series[float]", values: pd.DataFrame) -> Verdict:
    of_mm = rule.level.endswith("_mm")
    bounds = (-np.inf, np.inf) if rule.change else (0.0, np.inf if of_mm else 1.0)
    result = difference(values, beyond=rule.number, bounds=bounds)
    organ = rule.where.get("organ", "mean")
    if result.mean != result.mean:
        raise InputError(
            f"expected a value of {rule.level} ({organ}) to judge by --fail-if '{rule.text}', got none in any case; "
            "choose another metric or organ"
        )
    model, attack, loss, eps = (header[key] for key in NAMES)
    return Verdict(
        rule.text,
        str(model),
        str(attack),
        str(loss),
        float(eps),
        organ,
        result.mean,
        result.low,
        result.high,
        result.p,
        result.n,
        False,
    )


def _fails(rule: Rule, verdict: Verdict, p: float) -> bool:
    if not rule.significant:
        return rule.holds(verdict.value)
    return rule.holds(verdict.low) and rule.holds(verdict.high) and p < 0.05


def _refuse_powerless(rule: Rule, verdicts: Sequence[Verdict]) -> None:
    """A gate that cannot fail is not one."""
    n = min(verdict.n for verdict in verdicts)
    if 2.0 ** (1 - n) * len(verdicts) >= 0.05:
        raise InputError(
            f"expected enough patients for --fail-if '{rule.text}' to be able to fail, got {n}: "
            f"{warning(n, len(verdicts)).removesuffix('.')}; drop @sig, or narrow the rule with @attack= or @eps="
        )
