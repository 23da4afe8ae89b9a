"""The table of a detector: what it noticed of each attack, and how often it cried wolf. No torch in here."""

from typing import Any

import pandas as pd

from medseg_attack.errors import plural
from medseg_attack.report.sheet import PARTIAL, Sheet, between, number, percent
from medseg_attack.stats.alarms import main_rate, rates, two_sided_rate
from medseg_attack.stats.patients import warning

ADAPTIVE, NON_ADAPTIVE = "", "non_adaptive"


def detector_sheet(table: pd.DataFrame, *, title: str, n_calibration: int, partial: bool = False) -> Sheet:
    """The table of `stats.alarms.alarm_table`.

    Args:
        partial: whether a run that the detector is scored on is of part of the cases.
    """
    shown = rates(n_calibration)
    main = main_rate(n_calibration)
    climbed = table["loss"] if "loss" in table else pd.Series("", table.index)  # a table of an earlier version has none
    with_loss = climbed[table["kind"].isin(["attack", "adaptive"])].nunique() > 1
    heads = [
        "scored on",
        *(["loss"] if with_loss else []),
        "eps",
        "AUROC",
        "95 % CI",
        "to noise",
        *(f"at {100 * rate:.2g} %" for rate in shown),
    ]
    heads += ["Dice", "harmed", "noticed", "missed", "risk"]
    rows, rules, kind = [], set(), None
    for n, (_, row) in enumerate(table.iterrows()):
        if kind is not None and row["kind"] != kind:
            rules.add(n - 1)
        kind = row["kind"]
        is_attack = kind in ("attack", "adaptive")
        rows.append(
            [
                str(row["attack"]),
                *([_climbed(row)] if with_loss else []),
                str(row["eps"]),
                number(row.get("auroc", float("nan")), 2),
                between(row.get("low", float("nan")), row.get("high", float("nan"))),
                number(row.get("auroc_noise", float("nan")), 2),
                *(percent(row[f"alarms_{rate:.2g}"]) for rate in shown),
                number(row["dice"], 2),
                f"{int(row['harmed'])}/{int(row['patients'])}" if is_attack else "",
                percent(row["noticed"]) if is_attack else "",
                percent(row["missed"]) if is_attack else "",
                number(row["risk"], 2) if is_attack else "",
            ]
        )
    caption = " ".join([*([PARTIAL] if partial else []), _caption(table, n_calibration, main)])
    return Sheet(title, heads, rows, caption, left=2 + with_loss, rules=frozenset(rules))


def _climbed(row: "pd.Series[Any]") -> str:
    """The objective that an attack climbs, with its goal also where that is the usual one."""
    return str(row["loss"]) if str(row["goal"]) in str(row["loss"]) else f"{row['loss']} {row['goal']}"


def has_goals(table: pd.DataFrame) -> bool:
    """Whether an attack of the table wants a certain mask."""
    return "goal" in table and bool((table["goal"] != "").any())


def goal_sheet(table: pd.DataFrame, *, title: str, n_calibration: int) -> Sheet:
    """The share of attacks that is noticed, by the mask that they want: a wrong mask may look like a true one.

    Args:
        table: of `stats.alarms.alarm_table`.
    """
    rows = []
    for goal, of_goal in table[table["kind"].isin(["attack", "adaptive"])].groupby("goal", sort=True):
        unaware, aware = (of_goal[of_goal["kind"] == kind] for kind in ("attack", "adaptive"))
        line = [str(goal) or "any but the truth", str(len(unaware))]
        for each in (unaware, aware):
            line += [number(each["auroc"].min(), 2), percent(each["noticed"].min()), percent(each["missed"].max())]
        rows.append(line)
    heads = ["goal", "attacks", "AUROC", "noticed", "missed", "AUROC, known", "noticed, known", "missed, known"]
    caption = (
        "Each number: of the attack with this goal that is worst in it, at "
        f"{100 * main_rate(n_calibration):.2g} % false alarms. known: it knows the detector. "
        "A goal such as another patient's mask looks true to a detector of implausible masks."
    )
    return Sheet(title, heads, rows, caption, left=1)


def is_adaptive(table: pd.DataFrame) -> bool:
    """Whether an attack of the table knows the detector."""
    return bool((table["kind"] == "adaptive").any())


def _caption(table: pd.DataFrame, n_calibration: int, main: float) -> str:
    clean = table[table["kind"] == "clean"].iloc[0]
    patients = int(clean["patients"])
    rate = f"{main:.2g}"
    lines = [
        "AUROC against clean images of the same patients, and to noise of the same size. At X %: share of patients "
        f"with an alarm where at most X % of clean ones have a false one, by "
        f"{plural(n_calibration, 'calibration patient')}."
    ]
    if n_calibration < 19:
        lines.append(
            f"With fewer than 19 of them 5 % cannot be promised: the least is {100 / (n_calibration + 1):.2g} %."
        )
    column = f"alarms_{rate}"
    if clean[column] == clean[column]:
        low, high = clean[f"{column}_low"], clean[f"{column}_high"]
        lines.append(
            f"Realised at {100 * main:.2g} %: {round(clean[column] * patients)} of {patients} clean test patients "
            f"({100 * low:.0f}-{100 * high:.0f} %)."
        )
    if "alarms_two_sided" in table:
        lines.append(_two_sided(table, n_calibration))
    lines += [
        f"harmed: lost half their Dice or more; noticed: share of these with an alarm at {100 * main:.2g} %; missed: "
        "harmed and unnoticed, of all; risk: missed, and a tenth of the false alarms.",
        "" if is_adaptive(table) else "non_adaptive: no attack of the table knows the detector.",
        warning(patients),
    ]
    return " ".join(filter(None, lines))


def _two_sided(table: pd.DataFrame, n_calibration: int) -> str:
    """The alarms where unusually low scores are suspicious, too, as those of an attack that overshoots are."""
    words = {"clean": "clean ones", "attack": "those attacked", "adaptive": "those attacked by who knows the detector"}
    shares = table.groupby("kind")["alarms_two_sided"].max()
    text = ", ".join(f"{percent(shares[kind])} of {name}" for kind, name in words.items() if kind in shares)
    rate = two_sided_rate(n_calibration)
    if rate >= 1:
        return ""
    return f"With alarms at unusually low scores, too, of which {100 * rate:.2g} % are false: up to {text}."


def screen_sheet(table: pd.DataFrame, *, name: str, reason: str, rate: float, n_calibration: int) -> Sheet:
    """The table of new scans, the most suspicious first."""
    ordered = table.sort_values(["p", "scan"], kind="stable")
    rows = [
        [str(row["scan"]), f"ALARM: {reason}, most in {row['case']}" if row["alarm"] else "", f"{row['p']:.3f}"]
        for _, row in ordered.iterrows()
    ]
    alarms = int(table["alarm"].sum())
    caption = (
        f"{plural(alarms, 'alarm')} of {plural(len(table), 'scan')}. p: share of "
        f"{plural(n_calibration, 'clean patient')} and this one who are at least as suspicious; an alarm at {rate:g} "
        "or less, which is false for at most that share of clean scans. No alarm is no proof that a scan is untouched."
    )
    return Sheet(name, ["scan", "reason", "p"], rows, caption, left=2)
