"""All checks of rows, asked at once."""

from collections.abc import Sequence
from itertools import chain

import pandas as pd

from medseg_attack.checks.flags import Check, Finding, by_severity, checks_in
from medseg_attack.checks.rows import limits, strength, validity
from medseg_attack.checks.rows.runs import Runs, runs_of_model
from medseg_attack.metrics.empty import Empty
from medseg_attack.stats.scores import Unit

CHECKS: list[Check[[Runs]]] = list(chain.from_iterable(map(checks_in, (validity, strength, limits))))


def check_rows(
    rows: pd.DataFrame, *, unit: Unit = "volume", empty: Empty = "one", checks: Sequence[Check[[Runs]]] = ()
) -> list[Finding]:
    """Findings on the rows of one or several runs (as `runs.reading.read_runs` gives them), model by model.

    Args:
        checks: those that are asked; (): all.
    """
    models = [runs_of_model(of_model, unit, empty) for _, of_model in rows.groupby("model", sort=False)]
    return by_severity(finding for runs in models for check in checks or CHECKS for finding in check(runs))
