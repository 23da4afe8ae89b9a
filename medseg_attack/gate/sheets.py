"""A gate's verdicts for people (a table) and for machines (JUnit XML, GitHub annotations). No torch in here."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from medseg_attack import escaping
from medseg_attack.errors import plural
from medseg_attack.escaping import visible
from medseg_attack.gate.verdicts import Verdict
from medseg_attack.metrics.empty import EMPTY_RULES, Empty
from medseg_attack.report.sheet import Sheet, from_to, from_to_signed, number, p_value, signed
from medseg_attack.report.tables.summaries import budget
from medseg_attack.stats.patients import warning
from medseg_attack.stats.scores import Unit
from medseg_attack.storage.files import require_own, whole


def change_sheet(table: pd.DataFrame, *, unit: Unit, empty: Empty) -> Sheet:
    """New runs against the reference, the mean over organs of each."""
    shown = table[table["organ"] == "mean"]
    rows = [
        [
            str(row["model"]),
            str(row["attack"]),
            str(row["loss"]),
            budget(row),
            number(row["clean_old"]),
            number(row["clean_new"]),
            number(row["adv_old"]),
            number(row["adv_new"]),
            signed(row["mean"]),
            from_to_signed(row["low"], row["high"]),
            p_value(row["p_holm"]),
        ]
        for _, row in shown.iterrows()
    ]
    n, n_tests = int(shown["n"].min()), int(shown["p_holm"].notna().sum())
    text = (
        f"Mean Dice per {unit}; change of the adversarial one, new minus reference, paired over "
        f"{plural(n, 'patient')} with its 95 % interval, which allows for patients not measured; p: signed-rank on "
        "patients' means, Holm over the attacks' rows. "
        f"Empty masks: {EMPTY_RULES[empty]}. {warning(n, n_tests)}"
    ).strip()
    columns = [
        "model",
        "attack",
        "loss",
        "eps",
        "clean old",
        "clean new",
        "adv old",
        "adv new",
        "change",
        "95 % CI",
        "p",
    ]
    return Sheet("New runs against the reference", columns, rows, text, left=3)


def verdict_sheet(verdicts: Sequence[Verdict]) -> Sheet:
    """Every rule's verdict on every run it looked at."""
    rows = [
        [
            verdict.rule,
            verdict.run,
            verdict.organ,
            number(verdict.value) if verdict.organ else " ".join(verdict.flags) or "none",
            from_to(verdict.low, verdict.high),
            p_value(verdict.p),
            "FAILS" if verdict.failed else "passes",
        ]
        for verdict in verdicts
    ]
    n_failed = sum(verdict.failed for verdict in verdicts)
    n = min(verdict.n for verdict in verdicts)
    text = (
        f"{n_failed} of {len(verdicts)} checks fail, {plural(n, 'patient')}. p: signed-rank against the rule's number, "
        f"Holm over what the rule looks at; it decides with @sig alone. {warning(n)}"
    ).strip()
    return Sheet("Gate", ["rule", "run", "organ", "value", "95 % CI", "p", "verdict"], rows, text, left=3)


def verdict_json(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """All verdicts, and whether the gate is passed."""
    return {
        "passed": not any(verdict.failed for verdict in verdicts),
        "checks": [asdict(verdict) for verdict in verdicts],
    }


def write_junit(verdicts: Sequence[Verdict], file: Path) -> None:
    """JUnit XML: a test case per verdict, a failure with its sentence where it fails."""
    failed = sum(verdict.failed for verdict in verdicts)
    suite = ElementTree.Element(
        "testsuite", name="medattack compare", tests=str(len(verdicts)), failures=str(failed), errors="0", skipped="0"
    )
    for verdict in verdicts:
        run = verdict.run_with(f"eps={verdict.budget}")
        name = f"{verdict.rule} ({verdict.organ})" if verdict.organ else verdict.rule
        case = ElementTree.SubElement(suite, "testcase", classname=visible(run), name=visible(name))
        if verdict.failed:
            failure = ElementTree.SubElement(case, "failure", type="gate", message=visible(verdict.sentence))
            failure.text = visible(verdict.sentence)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    require_own_junit(file)
    with whole(file) as part:
        ElementTree.ElementTree(root).write(part, encoding="utf-8", xml_declaration=True)


def require_own_junit(file: Path) -> None:
    """Refuses to overwrite what are no verdicts.

    Raises:
        InputError: the file holds something else.
    """
    require_own(file, re.compile(rb"medattack compare"))


def github(verdicts: Sequence[Verdict]) -> list[str]:
    """Workflow commands: an error per failure, a notice if there is none."""
    failed = [verdict for verdict in verdicts if verdict.failed]
    if not failed:
        return [f"::notice title=medattack gate::{len(verdicts)} checks pass"]
    return [f"::error title=medattack gate::{escaping.github(verdict.sentence)}" for verdict in failed]
